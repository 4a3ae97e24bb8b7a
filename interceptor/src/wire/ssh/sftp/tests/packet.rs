//! What an agent sends.

use bytes::{BufMut, Bytes, BytesMut};
use russh_sftp::protocol::{
    FileAttributes, Lstat, MkDir, OpenDir, OpenFlags, Packet, ReadLink, Remove, Rename, SetStat,
    Stat, Symlink,
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

pub fn open(id: u32, path: &str, pflags: OpenFlags) -> Vec<u8> {
    let attrs = FileAttributes::empty();
    let open = russh_sftp::protocol::Open { id, filename: path.into(), pflags, attrs };
    Bytes::try_from(Packet::Open(open)).unwrap().to_vec()
}
