//! Packets that name a handle, decoded by `russh_sftp`'s decoder into structs of our own.
//!
//! Its own structs hold handles as `String` and replace what is not UTF-8. OpenSSH's handles
//! are binary numbers, so that two of them would become one.

use bytes::{BufMut, Bytes, BytesMut};
use russh_sftp::protocol::FileAttributes;
use serde::de::{DeserializeOwned, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::frame::Frame;

/// Longest handle (draft-ietf-secsh-filexfer-02, section 6.2).
pub(super) const MAX_HANDLE: usize = 256;

/// Enough for everything before the data of a bulk packet.
const HEAD: usize = 4 + 4 + MAX_HANDLE + 8 + 4;

/// A string of the protocol that need not be text.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Octets(pub Vec<u8>);

impl<'de> Deserialize<'de> for Octets {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes;
        impl Visitor<'_> for Bytes {
            type Value = Octets;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("bytes")
            }
            fn visit_byte_buf<E>(self, bytes: Vec<u8>) -> Result<Octets, E> {
                Ok(Octets(bytes))
            }
        }
        deserializer.deserialize_byte_buf(Bytes)
    }
}

impl Serialize for Octets {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

/// CLOSE, FSTAT, READDIR, and the answer HANDLE.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Handled {
    #[allow(dead_code, reason = "stands before what is wanted")]
    pub id: u32,
    pub handle: Octets,
}

/// READ, and WRITE up to its data.
#[derive(Debug, Deserialize)]
pub(super) struct Bulk {
    #[allow(dead_code, reason = "stands before what is wanted")]
    pub id: u32,
    pub handle: Octets,
    pub offset: u64,
    pub len: u32,
}

/// FSETSTAT.
#[derive(Debug, Deserialize)]
pub(super) struct SetOpen {
    #[allow(dead_code, reason = "stands before what is wanted")]
    pub id: u32,
    pub handle: Octets,
    pub attrs: FileAttributes,
}

/// `copy-data` behind its name.
#[derive(Debug, Deserialize)]
pub(super) struct CopyData {
    pub from: Octets,
    pub from_offset: u64,
    pub len: u64,
    pub to: Octets,
    pub to_offset: u64,
}

/// `fsync@openssh.com` and `fstatvfs@openssh.com` behind their names.
#[derive(Debug, Deserialize)]
pub(super) struct OneHandle {
    pub handle: Octets,
}

/// `statvfs@openssh.com`, `expand-path@openssh.com` and `home-directory` behind their names.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct OnePath {
    pub path: String,
}

/// `posix-rename@openssh.com` and `hardlink@openssh.com` behind their names.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct TwoPaths {
    pub old: String,
    pub new: String,
}

/// `lsetstat@openssh.com` behind its name.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct SetLink {
    pub path: String,
    pub attrs: FileAttributes,
}

/// A packet is not what its type says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Malformed;

/// Decodes all of `bytes`; what is left over is an error.
pub(super) fn whole<T: DeserializeOwned>(mut bytes: Bytes) -> Result<T, Malformed> {
    let value = russh_sftp::de::from_bytes(&mut bytes).map_err(|_| Malformed)?;
    if bytes.is_empty() { Ok(value) } else { Err(Malformed) }
}

/// Decodes a packet that ends with a handle.
pub(super) fn handled(frame: &Frame) -> Result<Vec<u8>, Malformed> {
    let Handled { handle, .. } = whole(frame.head(HEAD))?;
    if handle.0.len() > MAX_HANDLE { Err(Malformed) } else { Ok(handle.0) }
}

/// Decodes what stands before the data of a WRITE, and all of a READ. The second value says
/// where the data starts.
pub(super) fn bulk(frame: &Frame) -> Result<(Bulk, usize), Malformed> {
    let mut head = frame.head(HEAD);
    let before = head.len();
    let bulk: Bulk = russh_sftp::de::from_bytes(&mut head).map_err(|_| Malformed)?;
    if bulk.handle.0.len() > MAX_HANDLE {
        return Err(Malformed);
    }
    // The head starts behind length and type.
    Ok((bulk, 5 + before - head.len()))
}

/// An FSTAT, which has a handle that need not be text.
pub(super) fn fstat(id: u32, handle: Vec<u8>) -> Option<Bytes> {
    let body = russh_sftp::ser::to_bytes(&Handled { id, handle: Octets(handle) }).ok()?;
    let mut bytes = BytesMut::with_capacity(5 + body.len());
    bytes.put_u32(u32::try_from(body.len() + 1).ok()?);
    bytes.put_u8(8);
    bytes.put(body);
    Some(bytes.freeze())
}
