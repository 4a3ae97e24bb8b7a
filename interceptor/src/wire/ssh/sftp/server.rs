//! What comes from the server: answers, each to the one who asked.

use std::collections::HashMap;

use bytes::Bytes;
use russh_sftp::protocol::{Packet, RealPath, StatusCode, Version};

use super::frame::{BODY, Frame};
use super::handles::Serial;
use super::packet;
use super::request::EXTENSIONS;
use super::{Asked, Fault, Guard, Phase, Step, Wants, path};

const STATUS: u8 = 101;
const HANDLE: u8 = 102;
const DATA: u8 = 103;
const NAME: u8 = 104;
const ATTRS: u8 = 105;
const EXTENDED_REPLY: u8 = 201;

/// A REALPATH.
pub(super) fn realpath(id: u32, path: String) -> Option<Bytes> {
    Bytes::try_from(Packet::RealPath(RealPath { id, path })).ok()
}

impl Guard {
    pub(super) fn on_answer(&mut self, frame: Frame) -> Result<(), Fault> {
        match self.phase {
            Phase::Greeted => return self.on_version(&frame),
            Phase::Running => {}
            Phase::Start | Phase::Over => return Err(Fault::OutOfTurn(frame.kind())),
        }
        let kind = frame.kind();
        match self.asked.remove(&frame.id()).ok_or(Fault::OutOfTurn(kind))? {
            Asked::Home => self.home = canonical(&frame)?,
            Asked::Resolve { job, place } => {
                let path = canonical(&frame)?;
                self.resolved(job, place, path, frame);
            }
            Asked::Size(serial) => self.note_size(serial, &frame)?,
            Asked::Agent { id, wants } => self.on_agents_answer(frame, id, wants)?,
        }
        Ok(())
    }

    /// The agent learns of no extension that would be refused.
    fn on_version(&mut self, frame: &Frame) -> Result<(), Fault> {
        let kind = frame.kind();
        let Ok(Packet::Version(version)) = Packet::try_from(&mut frame.content()) else {
            return Err(Fault::OutOfTurn(kind));
        };
        if version.version != 3 {
            return Err(Fault::Version(version.version));
        }
        let known = |(name, _): &(String, String)| EXTENSIONS.contains(&name.as_str());
        let extensions: HashMap<_, _> = version.extensions.into_iter().filter(known).collect();
        let answer = Packet::Version(Version { version: 3, extensions });
        let bytes = Bytes::try_from(answer).map_err(|_| Fault::Malformed(kind))?;
        self.steps.push_back(Step::ToAgent(bytes));
        self.phase = Phase::Running;
        self.ask(Asked::Home, |id| realpath(id, ".".to_owned())).ok_or(Fault::Malformed(kind))
    }

    fn on_agents_answer(&mut self, frame: Frame, id: u32, wants: Wants) -> Result<(), Fault> {
        let kind = frame.kind();
        let expected = match &wants {
            Wants::Status | Wants::Written(_) | Wants::Closed(_) => STATUS,
            Wants::Attributes => ATTRS,
            Wants::Names => NAME,
            Wants::Extended => EXTENDED_REPLY,
            Wants::Handle(_) => HANDLE,
            Wants::Data { .. } => DATA,
        };
        if kind != expected && kind != STATUS {
            return Err(Fault::OutOfTurn(kind));
        }
        let status = if kind == STATUS { Some(status(&frame)?) } else { None };
        match wants {
            Wants::Handle(opened) if status.is_none() => {
                let (file, reads) = (!opened.directory, opened.reads);
                let name = packet::handled(&frame).map_err(|_| Fault::Malformed(kind))?;
                let serial =
                    self.handles.open(name.clone(), opened).ok_or(Fault::OutOfTurn(kind))?;
                self.steps.push_back(Step::ToAgent(frame.with_id(id)));
                if file && reads {
                    self.ask_size(serial, name);
                }
                return Ok(());
            }
            Wants::Data { serial, offset, len } => {
                return self.on_data(frame, id, status, (serial, offset, len));
            }
            Wants::Written(serial) => {
                if let (Some(code), Some(handle)) = (status, self.handles.get(serial))
                    && code != 0
                {
                    handle.write.failure.get_or_insert_with(|| name_of(code));
                }
            }
            Wants::Closed(serial) => {
                let code = status.unwrap_or_default();
                if let (Some(handle), true) = (self.handles.get(serial), code != 0) {
                    handle.write.failure.get_or_insert_with(|| name_of(code));
                }
                let ended = self.handles.close(serial);
                self.steps.push_back(Step::ToAgent(frame.with_id(id)));
                self.steps.extend(ended.into_iter().map(Step::Ended));
                return Ok(());
            }
            _ => {}
        }
        self.steps.push_back(Step::ToAgent(frame.with_id(id)));
        Ok(())
    }

    fn on_data(
        &mut self,
        frame: Frame,
        id: u32,
        status: Option<u32>,
        (serial, offset, len): (Serial, u64, u32),
    ) -> Result<(), Fault> {
        let kind = frame.kind();
        if status.is_none() {
            let said = word(&frame).ok_or(Fault::Malformed(kind))?;
            // More than was asked for would be hashed where it does not belong.
            if said > len || frame.len() != BODY + 4 + said as usize {
                return Err(Fault::Malformed(kind));
            }
        }
        let bytes = frame.with_id(id);
        if let Some((handle, window)) = self.handles.with_window(serial) {
            match status {
                None => handle.read.piece(offset, bytes.slice(BODY + 4..), window),
                Some(END) => {
                    handle.end_at = Some(handle.end_at.map_or(offset, |end| end.min(offset)));
                }
                Some(code) => {
                    handle.read.failure.get_or_insert_with(|| name_of(code));
                }
            }
        }
        self.steps.push_back(Step::ToAgent(bytes));
        Ok(())
    }

    /// Some agents read exactly as much as there is and never meet the end.
    fn ask_size(&mut self, serial: Serial, handle: Vec<u8>) {
        let _ = self.ask(Asked::Size(serial), |id| packet::fstat(id, handle));
    }

    fn note_size(&mut self, serial: Serial, frame: &Frame) -> Result<(), Fault> {
        match Packet::try_from(&mut frame.content()) {
            Ok(Packet::Attrs(answer)) => {
                if let Some(handle) = self.handles.get(serial) {
                    handle.size = answer.attrs.size;
                }
                Ok(())
            }
            _ if frame.kind() == STATUS => Ok(()),
            _ => Err(Fault::Malformed(frame.kind())),
        }
    }
}

const END: u32 = StatusCode::Eof as u32;

/// It is a STATUS.
pub(super) fn is_status(frame: &Frame) -> bool {
    frame.kind() == STATUS
}

/// The word behind the id: a status, or a length.
fn word(frame: &Frame) -> Option<u32> {
    frame.bytes().get(BODY..)?.first_chunk().map(|word| u32::from_be_bytes(*word))
}

fn status(frame: &Frame) -> Result<u32, Fault> {
    word(frame).ok_or(Fault::Malformed(frame.kind()))
}

fn name_of(code: u32) -> String {
    match code {
        3 => "permission denied".to_owned(),
        4 => "failure".to_owned(),
        code => format!("status {code}"),
    }
}

/// The path in the answer to a REALPATH; `None` where the server has none, or one that is no
/// text and could not be judged.
fn canonical(frame: &Frame) -> Result<Option<String>, Fault> {
    let malformed = Fault::Malformed(frame.kind());
    if frame.kind() == STATUS {
        return status(frame).map(|_| None);
    }
    let Ok(Packet::Name(mut answer)) = Packet::try_from(&mut frame.content()) else {
        return Err(malformed);
    };
    let (Some(file), true) = (answer.files.pop(), answer.files.is_empty()) else {
        return Err(malformed);
    };
    // The decoder puts U+FFFD where the bytes are no text: compare with what stands there,
    // behind the count and the length.
    let path = file.filename;
    let start = BODY + 8;
    let exact = frame.bytes().get(start..start + path.len()) == Some(path.as_bytes());
    let plain = path::fault(&path).is_none() && path::clean("/", &path) == path;
    Ok((exact && plain).then_some(path))
}
