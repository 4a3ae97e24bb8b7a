//! Map keys and values that the kernel program and the daemon share.
//!
//! Every type is `repr(C)` without padding, and its size is asserted: what one side writes the
//! other side reads byte by byte. A change here is a change of [`LAYOUT`].
#![no_std]

/// Version of everything in this file together with the names and kinds of the maps. Pins made
/// with another version are refused.
pub const LAYOUT: u32 = 1;

/// Most protected ports per network namespace, hence slots in every per-service map.
pub const SLOTS: u32 = 256;
/// Most pairs of exempt network and port.
pub const EXEMPTIONS: u32 = 4096;
/// Most own upstream connections at a time; beyond it a new one is refused, none is evicted.
pub const UPSTREAMS: u32 = 65_536;

/// [`Source::family`] of IPv4.
pub const IPV4: u16 = 4;
/// [`Source::family`] of IPv6.
pub const IPV6: u16 = 6;

/// Bits of a [`Source`] before its address: port and family must match exactly.
pub const SOURCE_FIXED_BITS: u32 = 32;

/// An address as both sides write it: network byte order, IPv4 as `::ffff:a.b.c.d`.
///
/// Words rather than bytes, since the verifier lets the context be read only word by word.
pub type Addr = [u32; 4];

/// An IPv4 address (network byte order) in the form of [`Addr`].
#[inline(always)]
pub const fn mapped(v4: u32) -> Addr {
    [0, 0, 0xffff_u32.to_be(), v4]
}

/// Whether an address is IPv4 in IPv6 form. No such address is legitimate in an IPv6 packet.
#[inline(always)]
pub const fn is_mapped(a: &Addr) -> bool {
    a[0] == 0 && a[1] == 0 && a[2] == 0xffff_u32.to_be()
}

/// Data of a key in `EXEMPT`, a longest-prefix-match trie. The prefix counts from the first
/// bit of `port`, so it is never shorter than [`SOURCE_FIXED_BITS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Source {
    /// Protected port, host byte order.
    pub port: u16,
    /// [`IPV4`] or [`IPV6`]; keeps `::/0` from covering IPv4.
    pub family: u16,
    /// Who connects.
    pub addr: Addr,
}

/// Key of `OWN`: a connection of the daemon to a protected service, as the kernel program sees
/// its first packet. `local` is the service, `remote` the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Tuple {
    /// Address of the service.
    pub local: Addr,
    /// Address the daemon connects from.
    pub remote: Addr,
    /// Port of the service, host byte order.
    pub local_port: u16,
    /// Port the daemon connects from, host byte order.
    pub remote_port: u16,
}

/// Value of `COUNTERS`, per slot and CPU. Counts lookups: normally one per connection, two
/// where SYN cookies are in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Counts {
    /// Steered into the daemon.
    pub steered: u64,
    /// Refused: no live listener, or the listener could not be assigned.
    pub refused: u64,
    /// Let through because the operator exempted the source.
    pub exempt: u64,
    /// Let through because it is the daemon's own upstream.
    pub own: u64,
}

/// The one value of `META`, written when the program is attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Meta {
    /// [`LAYOUT`] of the writer. First, so that every version can read it.
    pub layout: u32,
    /// User the pins were handed to.
    pub owner: u32,
    /// Inode of the network namespace the program is attached to.
    pub netns: u64,
    /// Tag of the program, as the kernel computed it.
    pub tag: u64,
    /// SHA-256 of the object file the program came from.
    pub object: [u8; 32],
}

const _: () = {
    assert!(size_of::<Source>() == 20 && align_of::<Source>() == 4);
    assert!(size_of::<Tuple>() == 36 && align_of::<Tuple>() == 4);
    assert!(size_of::<Counts>() == 32);
    assert!(size_of::<Meta>() == 56);
};

#[cfg(feature = "user")]
mod pod {
    use super::{Counts, Meta, Source, Tuple};

    // SAFETY: each is `repr(C)`, `Copy`, made of integers only and without padding (the sizes
    // asserted above are the sums of their fields), so every bit pattern is a valid value.
    unsafe impl aya::Pod for Source {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Tuple {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Counts {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Meta {}
}
