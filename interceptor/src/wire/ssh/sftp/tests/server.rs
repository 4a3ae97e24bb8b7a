//! A server in memory.

use std::collections::{BTreeMap, HashMap};

use bytes::{Bytes, BytesMut};
use russh_sftp::protocol::{
    Attrs, Data, Extended, File, FileAttributes, Name, OpenFlags, Packet, Status, StatusCode,
    Version,
};

use super::super::frame::Frame;
use super::super::packet::{self as decode, CopyData, TwoPaths};
use super::super::path;
use super::packet;

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

    /// Follows links part by part, as the kernel does.
    fn canonical(&self, asked: &str) -> String {
        let mut parts: Vec<String> = Vec::new();
        let base = if asked.starts_with('/') { "" } else { "/home/agent" };
        let mut left: Vec<String> =
            base.split('/').chain(asked.split('/')).rev().map(str::to_owned).collect();
        for _ in 0..100 {
            let Some(part) = left.pop() else { break };
            match part.as_str() {
                "" | "." => continue,
                ".." => {
                    parts.pop();
                    continue;
                }
                _ => parts.push(part),
            }
            if let Some(target) = self.links.get(&format!("/{}", parts.join("/"))) {
                parts.pop();
                if target.starts_with('/') {
                    parts.clear();
                }
                left.extend(target.split('/').rev().map(str::to_owned));
            }
        }
        format!("/{}", parts.join("/"))
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
