//! The journal's frames: `len u32 ‖ crc32c u32 ‖ payload`, little-endian.
//!
//! A payload is an event of a session, an entry of the host's ledger, or a checkpoint. The CRC
//! finds torn writes and bad disks; against people stand the hash chain and the signatures.

use super::chain::Hash;

/// Largest payload that is written or believed.
pub const MAX_PAYLOAD: usize = 64 << 20;
/// Bytes before the payload.
pub const HEADER: usize = 8;
/// Longest name of a kind.
pub const MAX_KIND: usize = 64;

const EVENT: u8 = 1;
const LEDGER: u8 = 2;
const CHECKPOINT: u8 = 3;
/// type, number, session, seq, ts, length of kind
const EVENT_FIXED: usize = 1 + 8 + 16 + 8 + 8 + 1;

/// What one frame holds, borrowed from the segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frame<'a> {
    /// An event of a session.
    Event(EventFrame<'a>),
    /// A signed entry of the host's ledger.
    Ledger(Signed<'a>),
    /// A signed checkpoint.
    Checkpoint(Signed<'a>),
}

/// An event of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventFrame<'a> {
    /// The host's session number.
    pub number: u64,
    /// The session.
    pub session: ulid::Ulid,
    /// Position in the session, from 1.
    pub seq: u64,
    /// Microseconds since the Unix epoch.
    pub ts_us: i64,
    /// What happened.
    pub kind: &'a str,
    /// JSON.
    pub body: &'a [u8],
    /// Attachment.
    pub data: &'a [u8],
    /// Chain hash after this event.
    pub hash: Hash,
}

/// A signed text: JSON with its Ed25519 signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signed<'a> {
    /// The exact bytes that were signed.
    pub body: &'a [u8],
    /// Ed25519.
    pub signature: &'a [u8; 64],
}

/// Starts an event frame in `out`; the body's JSON follows, then [`finish_event`].
pub fn begin_event(
    out: &mut Vec<u8>,
    number: u64,
    session: ulid::Ulid,
    seq: u64,
    ts: i64,
    kind: &str,
) {
    out.extend_from_slice(&[0; HEADER]);
    out.push(EVENT);
    out.extend_from_slice(&number.to_le_bytes());
    out.extend_from_slice(&session.to_bytes());
    out.extend_from_slice(&seq.to_le_bytes());
    out.extend_from_slice(&ts.to_le_bytes());
    out.push(kind.len() as u8);
    out.extend_from_slice(kind.as_bytes());
    out.extend_from_slice(&[0; 4]);
}

/// Where the body begins, counted from the frame's start.
pub fn body_offset(kind: &str) -> usize {
    HEADER + EVENT_FIXED + kind.len() + 4
}

/// Completes the frame that began at `at` and whose body ends at the end of `out`.
pub fn finish_event(out: &mut Vec<u8>, at: usize, kind: &str, data: &[u8], hash: &Hash) {
    let body = at + body_offset(kind);
    let body_len = (out.len() - body) as u32;
    out[body - 4..body].copy_from_slice(&body_len.to_le_bytes());
    out.extend_from_slice(&(data.len() as u32).to_le_bytes());
    out.extend_from_slice(data);
    out.extend_from_slice(hash);
    seal_header(out, at);
}

/// Encodes a ledger entry.
pub fn ledger(body: &[u8], signature: &[u8; 64]) -> Vec<u8> {
    signed(LEDGER, body, signature)
}

/// Encodes a checkpoint.
pub fn checkpoint(body: &[u8], signature: &[u8; 64]) -> Vec<u8> {
    signed(CHECKPOINT, body, signature)
}

fn signed(kind: u8, body: &[u8], signature: &[u8; 64]) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER + 1 + 64 + body.len());
    out.extend_from_slice(&[0; HEADER]);
    out.push(kind);
    out.extend_from_slice(signature);
    out.extend_from_slice(body);
    seal_header(&mut out, 0);
    out
}

fn seal_header(out: &mut [u8], at: usize) {
    let payload = at + HEADER;
    let len = (out.len() - payload) as u32;
    let crc = crc32c::crc32c(&out[payload..]);
    out[at..at + 4].copy_from_slice(&len.to_le_bytes());
    out[at + 4..at + 8].copy_from_slice(&crc.to_le_bytes());
}

/// What stands at the beginning of some bytes.
#[derive(Debug, PartialEq, Eq)]
pub enum Parsed<'a> {
    /// A whole frame and its length.
    Whole(Frame<'a>, usize),
    /// More bytes are needed (how many in all), or the frame is torn.
    Short(usize),
    /// Not a frame, in words; `skip` is the length it claims, if that is believable.
    Damaged {
        /// What is wrong.
        why: &'static str,
        /// Claimed length of the frame.
        skip: Option<usize>,
    },
}

/// Reads one frame.
pub fn parse(bytes: &[u8]) -> Parsed<'_> {
    let Some((head, rest)) = bytes.split_first_chunk::<HEADER>() else {
        return Parsed::Short(HEADER);
    };
    let len = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
    let crc = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
    if len == 0 || len > MAX_PAYLOAD {
        return Parsed::Damaged { why: "impossible length", skip: None };
    }
    let Some(payload) = rest.get(..len) else {
        return Parsed::Short(HEADER + len);
    };
    let skip = Some(HEADER + len);
    if crc32c::crc32c(payload) != crc {
        return Parsed::Damaged { why: "checksum differs", skip };
    }
    match decode(payload) {
        Some(frame) => Parsed::Whole(frame, HEADER + len),
        None => Parsed::Damaged { why: "unknown contents", skip },
    }
}

fn decode(payload: &[u8]) -> Option<Frame<'_>> {
    let (kind, rest) = payload.split_first()?;
    match *kind {
        EVENT => decode_event(rest).map(Frame::Event),
        LEDGER => decode_signed(rest).map(Frame::Ledger),
        CHECKPOINT => decode_signed(rest).map(Frame::Checkpoint),
        _ => None,
    }
}

fn decode_signed(bytes: &[u8]) -> Option<Signed<'_>> {
    let (signature, body) = bytes.split_first_chunk::<64>()?;
    Some(Signed { body, signature })
}

fn decode_event(bytes: &[u8]) -> Option<EventFrame<'_>> {
    let (number, rest) = bytes.split_first_chunk::<8>()?;
    let (session, rest) = rest.split_first_chunk::<16>()?;
    let (seq, rest) = rest.split_first_chunk::<8>()?;
    let (ts, rest) = rest.split_first_chunk::<8>()?;
    let (kind_len, rest) = rest.split_first()?;
    let (kind, rest) = rest.split_at_checked(*kind_len as usize)?;
    let (body, rest) = take(rest)?;
    let (data, rest) = take(rest)?;
    Some(EventFrame {
        number: u64::from_le_bytes(*number),
        session: ulid::Ulid::from_bytes(*session),
        seq: u64::from_le_bytes(*seq),
        ts_us: i64::from_le_bytes(*ts),
        kind: std::str::from_utf8(kind).ok()?,
        body,
        data,
        hash: rest.try_into().ok()?,
    })
}

fn take(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = bytes.split_first_chunk::<4>()?;
    rest.split_at_checked(u32::from_le_bytes(*len) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<u8> {
        let mut out = Vec::new();
        begin_event(&mut out, 7, ulid::Ulid::from_parts(1, 2), 3, -4, "request");
        out.extend_from_slice(b"{\"a\":1}");
        finish_event(&mut out, 0, "request", b"\0data", &[9; 32]);
        out
    }

    #[test]
    fn an_event_comes_back_as_it_went_in() {
        let bytes = sample();
        let Parsed::Whole(Frame::Event(e), len) = parse(&bytes) else { panic!() };
        assert_eq!(len, bytes.len());
        assert_eq!((e.number, e.seq, e.ts_us, e.kind), (7, 3, -4, "request"));
        assert_eq!((e.body, e.data, e.hash), (&b"{\"a\":1}"[..], &b"\0data"[..], [9; 32]));
        let signed = ledger(b"{}", &[1; 64]);
        let Parsed::Whole(Frame::Ledger(s), _) = parse(&signed) else { panic!() };
        assert_eq!((s.body, s.signature), (&b"{}"[..], &[1; 64]));
    }

    #[test]
    fn no_cut_and_no_flipped_bit_is_taken_for_a_frame() {
        let bytes = sample();
        for cut in 0..bytes.len() {
            assert!(matches!(parse(&bytes[..cut]), Parsed::Short(_)), "cut at {cut}");
        }
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(!matches!(parse(&bad), Parsed::Whole(..)), "bit {bit}");
        }
    }
}
