//! A guard, a policy, and a server in memory.

use std::collections::{BTreeMap, HashMap};

use aws_lc_rs::digest;
use russh_sftp::protocol::{
    Attrs, Data, Extended, File, FileAttributes, Name, OpenFlags, Status, Version,
};

use super::super::packet::{self as decode, CopyData, TwoPaths};
use super::super::{frame::Frame, path};
use super::*;

pub fn sha256(data: &[u8]) -> [u8; 32] {
    digest::digest(&digest::SHA256, data).as_ref().try_into().unwrap()
}

/// What the agent sends.
pub mod packet {
    use super::*;
    use bytes::{BufMut, BytesMut};
    use russh_sftp::protocol::{
        Lstat, MkDir, OpenDir, ReadLink, Remove, Rename, SetStat, Stat, Symlink,
    };

    fn encode(packet: Packet) -> Vec<u8> {
        Bytes::try_from(packet).unwrap().to_vec()
    }

    pub fn raw(kind: u8, id: u32, rest: &[u8]) -> Vec<u8> {
        let mut bytes = BytesMut::new();
        bytes.put_u32(u32::try_from(5 + rest.len()).unwrap());
        bytes.put_u8(kind);
        bytes.put_u32(id);
        bytes.put_slice(rest);
        bytes.to_vec()
    }

    pub fn string(bytes: &[u8]) -> Vec<u8> {
        [&u32::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat()
    }

    pub fn read(id: u32, handle: &[u8], offset: u64, len: u32) -> Vec<u8> {
        raw(5, id, &[&string(handle)[..], &offset.to_be_bytes(), &len.to_be_bytes()].concat())
    }

    pub fn write(id: u32, handle: &[u8], offset: u64, data: &[u8]) -> Vec<u8> {
        raw(6, id, &[&string(handle)[..], &offset.to_be_bytes(), &string(data)].concat())
    }

    pub fn close(id: u32, handle: &[u8]) -> Vec<u8> {
        raw(4, id, &string(handle))
    }

    pub fn readdir(id: u32, handle: &[u8]) -> Vec<u8> {
        raw(12, id, &string(handle))
    }

    /// FSETSTAT of a size.
    pub fn fsetsize(id: u32, handle: &[u8], size: u64) -> Vec<u8> {
        raw(10, id, &[&string(handle)[..], &1u32.to_be_bytes(), &size.to_be_bytes()].concat())
    }

    pub fn stat(id: u32, path: &str) -> Vec<u8> {
        encode(Packet::Stat(Stat { id, path: path.into() }))
    }

    pub fn lstat(id: u32, path: &str) -> Vec<u8> {
        encode(Packet::Lstat(Lstat { id, path: path.into() }))
    }

    pub fn opendir(id: u32, path: &str) -> Vec<u8> {
        encode(Packet::OpenDir(OpenDir { id, path: path.into() }))
    }

    pub fn readlink(id: u32, path: &str) -> Vec<u8> {
        encode(Packet::ReadLink(ReadLink { id, path: path.into() }))
    }

    pub fn realpath(id: u32, path: &str) -> Vec<u8> {
        encode(Packet::RealPath(russh_sftp::protocol::RealPath { id, path: path.into() }))
    }

    pub fn remove(id: u32, path: &str) -> Vec<u8> {
        encode(Packet::Remove(Remove { id, filename: path.into() }))
    }

    pub fn mkdir(id: u32, path: &str) -> Vec<u8> {
        encode(Packet::MkDir(MkDir { id, path: path.into(), attrs: FileAttributes::empty() }))
    }

    pub fn setstat(id: u32, path: &str, mode: u32) -> Vec<u8> {
        let attrs = FileAttributes { permissions: Some(mode), ..FileAttributes::empty() };
        encode(Packet::SetStat(SetStat { id, path: path.into(), attrs }))
    }

    pub fn rename(id: u32, old: &str, new: &str) -> Vec<u8> {
        encode(Packet::Rename(Rename { id, oldpath: old.into(), newpath: new.into() }))
    }

    /// As OpenSSH's clients send it.
    pub fn symlink(id: u32, target: &str, link: &str) -> Vec<u8> {
        encode(Packet::Symlink(Symlink { id, linkpath: target.into(), targetpath: link.into() }))
    }

    pub fn extended(id: u32, name: &str, data: &[u8]) -> Vec<u8> {
        raw(200, id, &[&string(name.as_bytes())[..], data].concat())
    }

    pub fn hardlink(id: u32, old: &str, new: &str) -> Vec<u8> {
        let paths = [string(old.as_bytes()), string(new.as_bytes())].concat();
        extended(id, "hardlink@openssh.com", &paths)
    }

    pub fn copy(id: u32, from: &[u8], to: &[u8], len: u64) -> Vec<u8> {
        let zero = 0u64.to_be_bytes();
        let data = [&string(from)[..], &zero, &len.to_be_bytes(), &string(to), &zero].concat();
        extended(id, "copy-data", &data)
    }
}

pub fn open(id: u32, path: &str, pflags: OpenFlags) -> Vec<u8> {
    let attrs = FileAttributes::empty();
    let open = russh_sftp::protocol::Open { id, filename: path.into(), pflags, attrs };
    Bytes::try_from(Packet::Open(open)).unwrap().to_vec()
}

/// Answers in order, as `sftp-server` does; knows links by their full path.
#[derive(Default)]
pub struct Server {
    pub extensions: Vec<(&'static str, &'static str)>,
    pub version_asked: Option<u32>,
    pub links: BTreeMap<String, String>,
    /// Paths that cannot be resolved.
    pub missing: Vec<String>,
    /// Paths whose canonical form is no text.
    pub not_text: Vec<String>,
    pub files: BTreeMap<String, Vec<u8>>,
    pub next_handle: u32,
    pub handles: HashMap<Vec<u8>, String>,
    /// All that was done, without the guard's own questions.
    pub done: Vec<String>,
    pub resolutions: usize,
    input: BytesMut,
}

impl Server {
    pub fn file(&mut self, path: &str, content: &[u8]) {
        self.files.insert(path.into(), content.into());
    }

    fn canonical(&self, asked: &str) -> String {
        let mut path = path::clean("/home/agent", asked);
        for _ in 0..8 {
            let link = self
                .links
                .iter()
                .find(|(link, _)| path == **link || path.starts_with(&format!("{link}/")));
            let Some((link, target)) = link else { break };
            let parent = path::split(link).unwrap().0;
            path = path::clean(parent, &format!("{target}{}", &path[link.len()..]));
        }
        path
    }

    pub fn serve(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.input.extend_from_slice(bytes);
        let mut out = Vec::new();
        while let Some(frame) = Frame::cut(&mut self.input).unwrap() {
            out.extend(self.answer(&frame));
        }
        out
    }

    fn status(id: u32, code: StatusCode) -> Vec<u8> {
        let status =
            Status { id, status_code: code, error_message: "m".into(), language_tag: "".into() };
        Bytes::try_from(Packet::Status(status)).unwrap().to_vec()
    }

    fn resolve(&mut self, id: u32, asked: &str) -> Vec<u8> {
        self.resolutions += 1;
        let asked_clean = path::clean("/home/agent", asked);
        if self.missing.contains(&asked_clean) {
            return Self::status(id, StatusCode::NoSuchFile);
        }
        if self.not_text.contains(&asked_clean) {
            let rest = [
                &1u32.to_be_bytes()[..],
                &packet::string(b"/x/\xff"),
                &packet::string(b""),
                &[0; 4],
            ];
            return packet::raw(104, id, &rest.concat());
        }
        let file = File {
            filename: self.canonical(asked),
            longname: "".into(),
            attrs: FileAttributes::empty(),
        };
        Bytes::try_from(Packet::Name(Name { id, files: vec![file] })).unwrap().to_vec()
    }

    fn handle(&mut self, id: u32, path: &str) -> Vec<u8> {
        let name = self.next_handle.to_be_bytes().to_vec();
        self.next_handle += 1;
        self.handles.insert(name.clone(), path.to_owned());
        packet::raw(102, id, &packet::string(&name))
    }

    fn answer(&mut self, frame: &Frame) -> Vec<u8> {
        let id = frame.id();
        match frame.kind() {
            1 => {
                self.version_asked = Some(id);
                let extensions =
                    self.extensions.iter().map(|(k, v)| (k.to_string(), v.to_string()));
                let version = Version { version: 3, extensions: extensions.collect() };
                return Bytes::try_from(Packet::Version(version)).unwrap().to_vec();
            }
            4..=6 | 8 | 10 | 12 => return self.on_handle(frame),
            _ => {}
        }
        let attrs =
            Attrs { id, attrs: FileAttributes { size: Some(0), ..FileAttributes::empty() } };
        let attrs = Bytes::try_from(Packet::Attrs(attrs)).unwrap().to_vec();
        let ok = Self::status(id, StatusCode::Ok);
        let (done, answer) = match Packet::try_from(&mut frame.content()).unwrap() {
            Packet::RealPath(p) => return self.resolve(id, &p.path),
            Packet::Open(p) => {
                if p.pflags.contains(OpenFlags::TRUNCATE) {
                    self.files.insert(p.filename.clone(), Vec::new());
                }
                (format!("open {}", p.filename), self.handle(id, &p.filename))
            }
            Packet::OpenDir(p) => (format!("opendir {}", p.path), self.handle(id, &p.path)),
            Packet::Stat(p) => (format!("stat {}", p.path), attrs),
            Packet::Lstat(p) => (format!("lstat {}", p.path), attrs),
            Packet::SetStat(p) => (format!("setstat {}", p.path), ok),
            Packet::Remove(p) => {
                self.links.remove(&p.filename);
                (format!("remove {}", p.filename), ok)
            }
            Packet::MkDir(p) => {
                self.missing.clear();
                (format!("mkdir {}", p.path), ok)
            }
            Packet::Rename(p) => {
                if let Some(target) = self.links.remove(&p.oldpath) {
                    self.links.insert(p.newpath.clone(), target);
                }
                (format!("rename {} {}", p.oldpath, p.newpath), ok)
            }
            Packet::ReadLink(p) => (format!("readlink {}", p.path), self.resolve(id, "/")),
            Packet::Symlink(p) => {
                self.links.insert(p.targetpath.clone(), p.linkpath.clone());
                (format!("symlink {} to {}", p.targetpath, p.linkpath), ok)
            }
            Packet::Extended(p) => self.extended(p),
            other => panic!("{other:?}"),
        };
        self.done.push(done);
        answer
    }

    fn extended(&mut self, p: Extended) -> (String, Vec<u8>) {
        let data = Bytes::from(p.data);
        let done = match p.request.as_str() {
            "copy-data" => {
                let copy: CopyData = decode::whole(data).unwrap();
                format!("copy {} {}", self.handles[&copy.from.0], self.handles[&copy.to.0])
            }
            "hardlink@openssh.com" => {
                let paths: TwoPaths = decode::whole(data).unwrap();
                format!("hardlink {} {}", paths.old, paths.new)
            }
            name => name.to_owned(),
        };
        (done, Self::status(p.id, StatusCode::Ok))
    }

    fn on_handle(&mut self, frame: &Frame) -> Vec<u8> {
        let id = frame.id();
        let ok = Self::status(id, StatusCode::Ok);
        match frame.kind() {
            4 => {
                let path = self.handles.remove(&decode::handled(frame).unwrap()).unwrap();
                self.done.push(format!("close {path}"));
                ok
            }
            5 => {
                let (bulk, _) = decode::bulk(frame).unwrap();
                let content =
                    self.files.get(&self.handles[&bulk.handle.0]).cloned().unwrap_or_default();
                let start = content.len().min(usize::try_from(bulk.offset).unwrap());
                let end = content.len().min(start + bulk.len as usize);
                if start == end {
                    return Self::status(id, StatusCode::Eof);
                }
                let data = Data { id, data: content[start..end].to_vec() };
                Bytes::try_from(Packet::Data(data)).unwrap().to_vec()
            }
            6 => {
                let (bulk, at) = decode::bulk(frame).unwrap();
                let path = self.handles[&bulk.handle.0].clone();
                self.done.push(format!("write {path} {}", bulk.offset));
                let content = self.files.entry(path).or_default();
                let start = usize::try_from(bulk.offset).unwrap();
                content.resize(content.len().max(start + bulk.len as usize), 0);
                content[start..start + bulk.len as usize].copy_from_slice(&frame.bytes()[at..]);
                ok
            }
            8 => {
                let path = &self.handles[&decode::handled(frame).unwrap()];
                let size = self.files.get(path).map(|content| content.len() as u64);
                let attrs = FileAttributes { size, ..FileAttributes::empty() };
                Bytes::try_from(Packet::Attrs(Attrs { id, attrs })).unwrap().to_vec()
            }
            kind => {
                self.done.push(format!("on handle {kind}"));
                ok
            }
        }
    }
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
                Step::ToAgent(bytes) => self.to_agent(&bytes),
                Step::Judge { ticket, operation } => self.judge(ticket, operation),
                Step::Ended(transfer) => self.ended.push(transfer),
            }
        }
    }

    fn to_agent(&mut self, bytes: &[u8]) {
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
