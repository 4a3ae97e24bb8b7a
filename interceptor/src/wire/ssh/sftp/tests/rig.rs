//! A guard between an agent's packets and a server in memory, and a policy for it.

use aws_lc_rs::digest;

use super::super::frame::Frame;
use super::server::Server;
use super::*;

pub fn sha256(data: &[u8]) -> [u8; 32] {
    digest::digest(&digest::SHA256, data).as_ref().try_into().unwrap()
}

/// A guard with both of its sides.
pub struct Rig {
    pub guard: Guard,
    pub server: Server,
    /// What the agent got, decoded where the crate can.
    pub answers: Vec<Packet>,
    pub raw_answers: Vec<Vec<u8>>,
    pub judged: Vec<Operation>,
    pub ended: Vec<Transfer>,
    /// Open questions.
    pub tickets: Vec<(Ticket, Operation)>,
    /// Paths on which a person must decide.
    pub hold: Vec<String>,
    refused: Vec<String>,
    withheld: Vec<String>,
    /// While set, the server's answers wait.
    pub stalled: Option<Vec<u8>>,
    from_guard: BytesMut,
}

impl Rig {
    pub fn new() -> Self {
        Self::unsaid(Limits::default())
    }

    fn unsaid(limits: Limits) -> Self {
        Self {
            guard: Guard::new(limits),
            server: Server::default(),
            answers: Vec::new(),
            raw_answers: Vec::new(),
            judged: Vec::new(),
            ended: Vec::new(),
            tickets: Vec::new(),
            hold: Vec::new(),
            refused: Vec::new(),
            withheld: Vec::new(),
            stalled: None,
            from_guard: BytesMut::new(),
        }
    }

    pub fn greeted() -> Self {
        Self::with(Limits::default())
    }

    pub fn with(limits: Limits) -> Self {
        let mut rig = Self::unsaid(limits);
        rig.greet();
        rig.answers.clear();
        rig.raw_answers.clear();
        rig
    }

    pub fn greet(&mut self) {
        self.agent(&[0, 0, 0, 5, 1, 0, 0, 0, 3]);
    }

    pub fn refuse(&mut self, path: &str) {
        self.refused.push(path.into());
    }

    pub fn withhold(&mut self, path: &str) {
        self.withheld.push(path.into());
    }

    pub fn agent(&mut self, bytes: &[u8]) {
        self.guard.from_agent(bytes).unwrap();
        self.settle();
    }

    pub fn send(&mut self, packet: Vec<u8>) {
        self.agent(&packet);
    }

    /// Lets the server answer from now on.
    pub fn unstall(&mut self) {
        if let Some(bytes) = self.stalled.take() {
            self.guard.from_server(&bytes).unwrap();
            self.settle();
        }
    }

    pub fn settle(&mut self) {
        while let Some(step) = self.guard.next() {
            match step {
                Step::ToServer(bytes) => {
                    let answer = self.server.serve(&bytes);
                    match &mut self.stalled {
                        Some(waiting) => waiting.extend(answer),
                        None => self.guard.from_server(&answer).unwrap(),
                    }
                }
                Step::ToAgent(bytes) => self.agent_gets(&bytes),
                Step::Judge { ticket, operation } => self.judge(ticket, operation),
                Step::Ended(transfer) => self.ended.push(transfer),
            }
        }
    }

    fn agent_gets(&mut self, bytes: &[u8]) {
        self.from_guard.extend_from_slice(bytes);
        while let Some(frame) = Frame::cut(&mut self.from_guard).unwrap() {
            self.raw_answers.push(frame.bytes().to_vec());
            self.answers.push(Packet::try_from(&mut frame.content()).unwrap());
        }
    }

    fn judge(&mut self, ticket: Ticket, operation: Operation) {
        self.judged.push(operation.clone());
        let among = |paths: &[String]| operation.places.iter().any(|p| paths.contains(&p.path));
        if among(&self.hold) {
            self.tickets.push((ticket, operation));
            return;
        }
        let decision = if among(&self.refused) {
            Decision::Refuse { message: "interceptor: denied by rule \"test\"".into() }
        } else {
            Decision::Permit { withhold: among(&self.withheld) }
        };
        self.guard.decide(ticket, decision).unwrap();
    }

    /// A person permits the oldest held operation.
    pub fn grant(&mut self) {
        let (ticket, _) = self.tickets.remove(0);
        self.guard.decide(ticket, Decision::Permit { withhold: false }).unwrap();
        self.settle();
    }

    /// The bytes of the last answer to `id`.
    pub fn raw(&self, id: u32) -> &[u8] {
        let of = |bytes: &&Vec<u8>| bytes[5..9] == id.to_be_bytes();
        self.raw_answers.iter().rev().find(of).unwrap_or_else(|| panic!("no answer to {id}"))
    }

    pub fn handle(&self, id: u32) -> Vec<u8> {
        let raw = self.raw(id);
        assert_eq!(raw[4], 102, "no handle but {raw:?}");
        raw[13..].to_vec()
    }

    pub fn data(&self, id: u32) -> &[u8] {
        let raw = self.raw(id);
        assert_eq!(raw[4], 103, "no data but {raw:?}");
        &raw[13..]
    }

    pub fn status(&self, id: u32) -> StatusCode {
        self.status_text(id).0
    }

    pub fn status_text(&self, id: u32) -> (StatusCode, String) {
        let mut content = Bytes::copy_from_slice(&self.raw(id)[4..]);
        match Packet::try_from(&mut content) {
            Ok(Packet::Status(status)) => (status.status_code, status.error_message),
            other => panic!("{other:?}"),
        }
    }
}
