//! What comes from the agent: sent on, answered here, or made into a job.

use bytes::Bytes;
use russh_sftp::protocol::{Init, Packet, StatusCode};

use super::frame::Frame;
use super::handles::Serial;
use super::packet::Malformed;
use super::request::{self, Request};
use super::{Asked, Fault, Guard, Phase, SftpError, Step, Wants};

const NO_HANDLE: &str = "interceptor: no such handle";
pub(super) const NOT_OPENED_SO: &str = "interceptor: the handle was not opened for this";

impl Guard {
    /// Handles what the agent has sent, as far as there is room.
    pub(super) fn read_agent(&mut self) -> Result<(), SftpError> {
        while self.phase != Phase::Greeted && !self.is_full() {
            match Frame::cut(&mut self.agent) {
                Ok(Some(frame)) => {
                    if let Err(fault) = self.on_packet(frame) {
                        return self.over(SftpError::Agent(fault));
                    }
                }
                Ok(None) => break,
                Err(e) => return self.over(SftpError::Agent(e.into())),
            }
        }
        Ok(())
    }

    fn on_packet(&mut self, frame: Frame) -> Result<(), Fault> {
        if self.phase == Phase::Start {
            return self.on_init(&frame);
        }
        let kind = frame.kind();
        if kind == 1 {
            return Err(Fault::OutOfTurn(kind));
        }
        match request::parse(&frame).map_err(|Malformed| Fault::Malformed(kind))? {
            Request::Refuse { code, words } => self.refuse(frame.id(), code, words),
            Request::Pass => drop(self.forward(frame, Wants::Extended)),
            Request::OnPath(request) => self.submit(frame.id(), request),
            request => self.on_handle(frame, request),
        }
        Ok(())
    }

    /// Only version 3 is spoken, whatever the agent offers beyond, and without extensions of
    /// its own.
    fn on_init(&mut self, frame: &Frame) -> Result<(), Fault> {
        let kind = frame.kind();
        let Ok(Packet::Init(init)) = Packet::try_from(&mut frame.content()) else {
            return Err(Fault::OutOfTurn(kind));
        };
        if init.version < 3 {
            return Err(Fault::Version(init.version));
        }
        let bytes =
            Bytes::try_from(Packet::Init(Init::new())).map_err(|_| Fault::Malformed(kind))?;
        self.steps.push_back(Step::ToServer(bytes));
        self.phase = Phase::Greeted;
        Ok(())
    }

    /// Handles a request on open handles, or lets it wait for an earlier one's decision.
    pub(super) fn on_handle(&mut self, frame: Frame, request: Request) {
        let (first, second) = match &request {
            Request::Read { handle, .. }
            | Request::Write { handle, .. }
            | Request::Close { handle }
            | Request::Inspect { handle }
            | Request::ReadDir { handle }
            | Request::SetOpen { handle, .. } => (handle, handle),
            Request::Copy { from, to, .. } => (from, to),
            _ => return,
        };
        let (Some(serial), Some(other)) = (self.handles.named(first), self.handles.named(second))
        else {
            return self.refuse(frame.id(), StatusCode::Failure, NO_HANDLE);
        };
        for serial in [serial, other] {
            if let Some(handle) = self.handles.get(serial)
                && handle.busy()
            {
                self.waiting += frame.len();
                return handle.waiting.push_back(frame);
            }
        }
        self.on_free_handle(frame, request, serial, other);
    }

    fn on_free_handle(&mut self, frame: Frame, request: Request, serial: Serial, other: Serial) {
        let Some(opened) = self.handles.get(serial).map(|handle| handle.opened.clone()) else {
            return;
        };
        let file = !opened.directory;
        match request {
            Request::Read { offset, len, .. } if file && opened.reads => {
                self.forward(frame, Wants::Data { serial, offset, len });
            }
            Request::Write { offset, data, .. } if file && opened.writes => {
                let bytes = self.forward(frame, Wants::Written(serial));
                if let Some((handle, window)) = self.handles.with_window(serial) {
                    handle.write.piece(offset, bytes.slice(data), window);
                }
            }
            Request::ReadDir { .. } if opened.directory => {
                self.forward(frame, Wants::Names);
            }
            Request::Inspect { .. } => {
                let fstat = frame.kind() == 8;
                self.forward(frame, if fstat { Wants::Attributes } else { Wants::Extended });
            }
            Request::Close { handle } => {
                self.handles.forget_name(&handle);
                self.forward(frame, Wants::Closed(serial));
            }
            Request::SetOpen { size, attributes, .. } => {
                self.judge_set_open(frame, serial, size, attributes);
            }
            Request::Copy { attributes, .. } if file && opened.reads => {
                self.judge_copy(frame, serial, other, attributes);
            }
            _ => self.refuse(frame.id(), StatusCode::PermissionDenied, NOT_OPENED_SO),
        }
    }

    /// Sends the packet on, under an id of ours. Gives what was sent.
    pub(super) fn forward(&mut self, frame: Frame, wants: Wants) -> Bytes {
        let id = self.fresh_id();
        self.asked.insert(id, Asked::Agent { id: frame.id(), wants });
        let bytes = frame.with_id(id);
        self.steps.push_back(Step::ToServer(bytes.clone()));
        bytes
    }
}
