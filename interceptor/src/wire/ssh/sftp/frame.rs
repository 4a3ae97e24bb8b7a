//! Packets as they lie in the stream: a length word, a type, and for all but the greeting an id.
//!
//! This is all of the protocol that is read by hand. Everything behind the id is decoded by
//! `russh_sftp` ([`super::packet`]), and bulk data is not decoded at all.

use bytes::{Bytes, BytesMut};

/// Largest packet, without its length word: 256 KiB, as in OpenSSH, and room for a header.
pub const MAX_PACKET: usize = (256 << 10) + 1024;

/// Bytes before the type.
const LENGTH: usize = 4;
/// Where the id starts: behind length and type.
const ID: usize = 5;
/// Where what follows the id starts.
pub(super) const BODY: usize = 9;

/// Why bytes are not a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Longer than anybody needs.
    #[error("a packet of {0} bytes is larger than {MAX_PACKET}")]
    TooLong(u32),
    /// No type, or no id.
    #[error("a packet of {0} bytes is too short")]
    TooShort(u32),
}

/// One whole packet.
#[derive(Debug)]
pub(super) struct Frame(BytesMut);

impl Frame {
    /// Takes the packet at the start of `buffer`, once all of it is there.
    pub fn cut(buffer: &mut BytesMut) -> Result<Option<Self>, FrameError> {
        let Some(word) = buffer.first_chunk::<LENGTH>() else { return Ok(None) };
        let length = u32::from_be_bytes(*word);
        // The greeting has a version where all others have an id.
        if length < 5 {
            return Err(FrameError::TooShort(length));
        }
        if length as usize > MAX_PACKET {
            return Err(FrameError::TooLong(length));
        }
        let total = LENGTH + length as usize;
        if buffer.len() < total {
            buffer.reserve(total - buffer.len());
            return Ok(None);
        }
        Ok(Some(Self(buffer.split_to(total))))
    }

    /// The type byte.
    pub fn kind(&self) -> u8 {
        self.0[LENGTH]
    }

    /// The id; in a greeting this is the version.
    pub fn id(&self) -> u32 {
        self.0[ID..].first_chunk().map_or(0, |word| u32::from_be_bytes(*word))
    }

    /// The same packet under another id.
    pub fn with_id(mut self, id: u32) -> Bytes {
        self.0[ID..BODY].copy_from_slice(&id.to_be_bytes());
        self.0.freeze()
    }

    /// Bytes with the length word.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Type and payload, as the decoder wants them.
    pub fn content(&self) -> Bytes {
        Bytes::copy_from_slice(&self.0[LENGTH..])
    }

    /// Id and what follows, at most `limit` bytes of it.
    pub fn head(&self, limit: usize) -> Bytes {
        Bytes::copy_from_slice(&self.0[ID..self.0.len().min(ID + limit)])
    }

    /// Everything, with the length word.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}
