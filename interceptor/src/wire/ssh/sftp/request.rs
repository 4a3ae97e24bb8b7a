//! An agent's packet, decoded: which paths or handles it names and what it does with them.
//!
//! What was decoded must give the same bytes when it is encoded again. So nothing that was not
//! seen here (a path that is not UTF-8, an unknown attribute, bytes at the end) is judged as
//! something else than what a server would have read.

use std::ops::Range;

use bytes::Bytes;
use russh_sftp::protocol::{FileAttributes, OpenFlags, Packet, StatusCode};
use russh_sftp::{de, ser};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::frame::Frame;
use super::operation::{self, Touch, Verb};
use super::packet::{self, CopyData, Malformed, OneHandle, OnePath, SetLink, SetOpen, TwoPaths};
use super::path;

/// How a path is resolved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    /// In whole: links are followed to the end.
    Follow,
    /// Only its directory: the operation is on the name itself.
    Keep,
    /// The text of a link that is to be made: resolved as seen from that link, sent as it is.
    Text,
    /// By sending the request itself, which asks the server for a path.
    Itself,
}

/// One path that a packet names.
#[derive(Debug, Clone)]
pub(super) struct Named {
    pub asked: String,
    pub how: How,
    pub touch: Touch,
}

/// What a packet with paths is encoded from again.
#[derive(Debug)]
pub(super) enum Form {
    Packet(Packet),
    OnePath(String),
    TwoPaths(String),
    SetLink(FileAttributes),
}

/// A request whose paths must be resolved and judged.
#[derive(Debug)]
pub(super) struct OnPath {
    pub verb: Verb,
    pub named: Vec<Named>,
    pub flags: Vec<&'static str>,
    pub attributes: String,
    /// Flags of an OPEN.
    pub open: Option<OpenFlags>,
    form: Form,
}

/// What a packet asks for.
#[derive(Debug)]
pub(super) enum Request {
    OnPath(OnPath),
    Read {
        handle: Vec<u8>,
        offset: u64,
        len: u32,
    },
    Write {
        handle: Vec<u8>,
        offset: u64,
        data: Range<usize>,
    },
    Close {
        handle: Vec<u8>,
    },
    /// FSTAT, fsync and fstatvfs: nothing beyond what opening the file permitted.
    Inspect {
        handle: Vec<u8>,
    },
    ReadDir {
        handle: Vec<u8>,
    },
    SetOpen {
        handle: Vec<u8>,
        size: Option<u64>,
        attributes: String,
    },
    Copy {
        from: Vec<u8>,
        to: Vec<u8>,
        attributes: String,
    },
    /// Concerns no file.
    Pass,
    /// Answered here, with a status.
    Refuse {
        code: StatusCode,
        words: &'static str,
    },
}

/// Extensions that may be used, and that a server's greeting may name.
pub(super) const EXTENSIONS: &[&str] = &[
    "posix-rename@openssh.com",
    "statvfs@openssh.com",
    "fstatvfs@openssh.com",
    "hardlink@openssh.com",
    "fsync@openssh.com",
    "lsetstat@openssh.com",
    "limits@openssh.com",
    "expand-path@openssh.com",
    "copy-data",
    "home-directory",
    "users-groups-by-id@openssh.com",
];

/// Decodes a packet that comes after the greeting.
pub(super) fn parse(frame: &Frame) -> Result<Request, Malformed> {
    match frame.kind() {
        3 | 7 | 9 | 11 | 13..=20 => on_path(frame),
        4 => Ok(Request::Close { handle: packet::handled(frame)? }),
        5 => {
            let (bulk, at) = packet::bulk(frame)?;
            if at != frame.len() {
                return Err(Malformed);
            }
            Ok(Request::Read { handle: bulk.handle.0, offset: bulk.offset, len: bulk.len })
        }
        6 => {
            let (bulk, at) = packet::bulk(frame)?;
            if frame.len() - at != bulk.len as usize {
                return Err(Malformed);
            }
            Ok(Request::Write { handle: bulk.handle.0, offset: bulk.offset, data: at..frame.len() })
        }
        8 => Ok(Request::Inspect { handle: packet::handled(frame)? }),
        10 => set_open(frame),
        12 => Ok(Request::ReadDir { handle: packet::handled(frame)? }),
        200 => extended(frame),
        _ => Ok(unsupported()),
    }
}

fn unsupported() -> Request {
    Request::Refuse { code: StatusCode::OpUnsupported, words: "interceptor: not supported" }
}

fn decode(frame: &Frame) -> Result<Packet, Malformed> {
    Packet::try_from(&mut frame.content()).map_err(|_| Malformed)
}

/// True if the packet's bytes are what its decoded form stands for.
fn round_trips(frame: &Frame) -> Result<bool, Malformed> {
    let again = Bytes::try_from(decode(frame)?).map_err(|_| Malformed)?;
    Ok(again == frame.bytes())
}

fn on_path(frame: &Frame) -> Result<Request, Malformed> {
    if !round_trips(frame)? {
        return Ok(not_as_written());
    }
    let packet = decode(frame)?;
    let one = |verb, path: &str, how, touch| OnPath::new(verb, &[(path, how, touch)]);
    let two = |verb, a: (&str, How, Touch), b: (&str, How, Touch)| OnPath::new(verb, &[a, b]);
    let mut request = match &packet {
        Packet::Open(p) => {
            if p.pflags.bits() & !OpenFlags::all().bits() != 0 {
                return Ok(not_as_written());
            }
            // With both flags the kernel does not follow a link in last place.
            let new = p.pflags.contains(OpenFlags::CREATE | OpenFlags::EXCLUDE);
            let how = if new { How::Keep } else { How::Follow };
            let mut request = one(Verb::Open, &p.filename, how, touch(p.pflags));
            request.flags = operation::flags(p.pflags);
            request.attributes = operation::attributes(&p.attrs);
            request.open = Some(p.pflags);
            request
        }
        Packet::OpenDir(p) => one(Verb::List, &p.path, How::Follow, Touch::List),
        Packet::Stat(p) => one(Verb::Stat, &p.path, How::Follow, Touch::Look),
        Packet::Lstat(p) => match p.path.ends_with('/') {
            // A slash at the end makes the kernel follow.
            true => one(Verb::Stat, &p.path, How::Follow, Touch::Look),
            false => one(Verb::Stat, &p.path, How::Keep, Touch::Look),
        },
        Packet::SetStat(p) => {
            let mut request = one(Verb::SetStat, &p.path, How::Follow, Touch::Attributes);
            request.attributes = operation::attributes(&p.attrs);
            request
        }
        Packet::Remove(p) => one(Verb::Remove, &p.filename, How::Keep, Touch::Remove),
        Packet::MkDir(p) => {
            let mut request = one(Verb::MakeDirectory, &p.path, How::Keep, Touch::Write);
            request.attributes = operation::attributes(&p.attrs);
            request
        }
        Packet::RmDir(p) => one(Verb::RemoveDirectory, &p.path, How::Keep, Touch::Remove),
        Packet::RealPath(p) => one(Verb::RealPath, &p.path, How::Itself, Touch::Look),
        Packet::ReadLink(p) => one(Verb::ReadLink, &p.path, How::Keep, Touch::Look),
        Packet::Rename(p) => two(
            Verb::Rename,
            (&p.oldpath, How::Keep, Touch::Move),
            (&p.newpath, How::Keep, Touch::Write),
        ),
        // OpenSSH sends what the link points to first, against the draft (PROTOCOL, 4.1). The
        // crate names the fields as the draft does.
        Packet::Symlink(p) => two(
            Verb::Symlink,
            (&p.targetpath, How::Keep, Touch::Write),
            (&p.linkpath, How::Text, Touch::Look),
        ),
        _ => return Ok(unsupported()),
    };
    request.form = Form::Packet(packet);
    Ok(request.checked())
}

/// What an OPEN does to its file. The server reads where neither flag is set, and cuts or makes
/// a file that is opened only for reading.
fn touch(flags: OpenFlags) -> Touch {
    let changes = flags
        .intersects(OpenFlags::WRITE | OpenFlags::APPEND | OpenFlags::CREATE | OpenFlags::TRUNCATE);
    match (reads(flags), changes) {
        (true, true) => Touch::ReadWrite,
        (false, _) => Touch::Write,
        (true, false) => Touch::Read,
    }
}

/// The server opens for reading.
pub(super) fn reads(flags: OpenFlags) -> bool {
    flags.contains(OpenFlags::READ) || !flags.contains(OpenFlags::WRITE)
}

fn not_as_written() -> Request {
    Request::Refuse {
        code: StatusCode::BadMessage,
        words: "interceptor: a path is not UTF-8, or the packet holds what is not known",
    }
}

fn set_open(frame: &Frame) -> Result<Request, Malformed> {
    let SetOpen { handle, attrs, .. } = packet::whole(frame.head(usize::MAX - 8))?;
    let again = ser::to_bytes(&attrs).map_err(|_| Malformed)?;
    if handle.0.len() > packet::MAX_HANDLE || !frame.bytes().ends_with(&again) {
        return Err(Malformed);
    }
    let attributes = operation::attributes(&attrs);
    Ok(Request::SetOpen { handle: handle.0, size: attrs.size, attributes })
}

fn extended(frame: &Frame) -> Result<Request, Malformed> {
    let Packet::Extended(p) = decode(frame)? else { return Err(Malformed) };
    let name = p.request.clone();
    let data = Bytes::from(p.data);
    let look = |verb, how| one_path(name.clone(), data.clone(), verb, how);
    match p.request.as_str() {
        "posix-rename@openssh.com" => {
            two_paths(name, data, Verb::Rename, (Touch::Move, Touch::Write))
        }
        // The same file is then at hand under a name that no rule may know.
        "hardlink@openssh.com" => {
            two_paths(name, data, Verb::HardLink, (Touch::ReadWrite, Touch::Write))
        }
        "statvfs@openssh.com" => look(Verb::Stat, How::Follow),
        "expand-path@openssh.com" | "home-directory" => look(Verb::RealPath, How::Itself),
        "lsetstat@openssh.com" => {
            let Some(SetLink { path, attrs }) = exact(data)? else { return Ok(not_as_written()) };
            let mut request = OnPath::new(Verb::SetStat, &[(&path, How::Keep, Touch::Attributes)]);
            request.attributes = operation::attributes(&attrs);
            request.form = Form::SetLink(attrs);
            Ok(request.checked())
        }
        "fsync@openssh.com" | "fstatvfs@openssh.com" => {
            let OneHandle { handle } = packet::whole(data)?;
            Ok(Request::Inspect { handle: handle.0 })
        }
        "copy-data" => {
            let copy: CopyData = packet::whole(data)?;
            let attributes =
                format!("{} bytes from {} to {}", copy.len, copy.from_offset, copy.to_offset);
            Ok(Request::Copy { from: copy.from.0, to: copy.to.0, attributes })
        }
        "limits@openssh.com" | "users-groups-by-id@openssh.com" => Ok(Request::Pass),
        _ => Ok(unsupported()),
    }
}

/// Decodes an extension's data; `None` if it does not give the same bytes again.
fn exact<T: DeserializeOwned + Serialize>(data: Bytes) -> Result<Option<T>, Malformed> {
    let value: T = de::from_bytes(&mut data.clone()).map_err(|_| Malformed)?;
    let again = ser::to_bytes(&value).map_err(|_| Malformed)?;
    Ok((again == data).then_some(value))
}

fn one_path(name: String, data: Bytes, verb: Verb, how: How) -> Result<Request, Malformed> {
    let Some(OnePath { path }) = exact(data)? else { return Ok(not_as_written()) };
    let mut request = OnPath::new(verb, &[(&path, how, Touch::Look)]);
    request.form = Form::OnePath(name);
    Ok(request.checked())
}

fn two_paths(
    name: String,
    data: Bytes,
    verb: Verb,
    (old_touch, new_touch): (Touch, Touch),
) -> Result<Request, Malformed> {
    let Some(TwoPaths { old, new }) = exact(data)? else { return Ok(not_as_written()) };
    let places = [(&*old, How::Keep, old_touch), (&*new, How::Keep, new_touch)];
    let mut request = OnPath::new(verb, &places);
    request.form = Form::TwoPaths(name);
    Ok(request.checked())
}

impl OnPath {
    fn new(verb: Verb, named: &[(&str, How, Touch)]) -> Self {
        let named = named
            .iter()
            .map(|&(asked, how, touch)| Named { asked: asked.to_owned(), how, touch })
            .collect();
        let form = Form::OnePath(String::new());
        Self { verb, named, flags: Vec::new(), attributes: String::new(), open: None, form }
    }

    fn checked(self) -> Request {
        match self.named.iter().find_map(|named| path::fault(&named.asked)) {
            Some(words) => Request::Refuse { code: StatusCode::BadMessage, words },
            None => Request::OnPath(self),
        }
    }

    /// Its answer is an EXTENDED_REPLY where it is no status.
    pub fn is_extended(&self) -> bool {
        !matches!(self.form, Form::Packet(_))
    }

    /// Other paths may lead elsewhere once this is done.
    pub fn moves_names(&self) -> bool {
        matches!(
            self.verb,
            Verb::Rename
                | Verb::Remove
                | Verb::RemoveDirectory
                | Verb::MakeDirectory
                | Verb::Symlink
                | Verb::HardLink
        )
    }

    /// The packet under the id `id`, with `paths` in place of those that were asked for.
    pub fn encode(self, id: u32, paths: &[&str]) -> Option<Bytes> {
        let mut path = paths.iter().map(|path| (*path).to_owned());
        let first = path.next()?;
        let second = path.next();
        let data = match self.form {
            Form::Packet(packet) => return encode_packet(packet, id, first, second),
            Form::OnePath(name) => (name, ser::to_bytes(&OnePath { path: first })),
            Form::TwoPaths(name) => (name, ser::to_bytes(&TwoPaths { old: first, new: second? })),
            Form::SetLink(attrs) => {
                let name = "lsetstat@openssh.com".to_owned();
                (name, ser::to_bytes(&SetLink { path: first, attrs }))
            }
        };
        let (request, Ok(data)) = data else { return None };
        let packet = russh_sftp::protocol::Extended { id, request, data: data.to_vec() };
        Bytes::try_from(Packet::Extended(packet)).ok()
    }

    /// The packet as asked, for requests that are their own resolution.
    pub fn encode_as_asked(&self, id: u32) -> Option<Bytes> {
        let path = self.named.first()?.asked.clone();
        let packet = match &self.form {
            Form::OnePath(name) => Packet::Extended(russh_sftp::protocol::Extended {
                id,
                request: name.clone(),
                data: ser::to_bytes(&OnePath { path }).ok()?.to_vec(),
            }),
            _ => Packet::RealPath(russh_sftp::protocol::RealPath { id, path }),
        };
        Bytes::try_from(packet).ok()
    }
}

fn encode_packet(
    mut packet: Packet,
    new_id: u32,
    first: String,
    second: Option<String>,
) -> Option<Bytes> {
    let (id, path) = match &mut packet {
        Packet::Open(p) => (&mut p.id, &mut p.filename),
        Packet::OpenDir(p) => (&mut p.id, &mut p.path),
        Packet::Stat(p) => (&mut p.id, &mut p.path),
        Packet::Lstat(p) => (&mut p.id, &mut p.path),
        Packet::SetStat(p) => (&mut p.id, &mut p.path),
        Packet::Remove(p) => (&mut p.id, &mut p.filename),
        Packet::MkDir(p) => (&mut p.id, &mut p.path),
        Packet::RmDir(p) => (&mut p.id, &mut p.path),
        Packet::ReadLink(p) => (&mut p.id, &mut p.path),
        Packet::Rename(p) => {
            p.newpath = second?;
            (&mut p.id, &mut p.oldpath)
        }
        // What the link says stays as it is; see `on_path` for the order.
        Packet::Symlink(p) => (&mut p.id, &mut p.targetpath),
        _ => return None,
    };
    *id = new_id;
    *path = first;
    Bytes::try_from(packet).ok()
}
