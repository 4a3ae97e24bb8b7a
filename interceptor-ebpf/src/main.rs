//! Steers every new TCP connection to a protected port into the daemon, or refuses it. It looks
//! at addresses and ports only, and lets nothing through but exempt sources and, while the
//! daemon lives, the daemon's own upstreams.
//!
//! SAFETY of every `unsafe` below: the context is the kernel's for the length of the call, a
//! map's address or value stays valid as long, and the verifier proves both at load.
#![no_std]
#![no_main]

use aya_ebpf::bindings::{bpf_sk_lookup, sk_action::SK_DROP as REFUSE, sk_action::SK_PASS as PASS};
use aya_ebpf::helpers::{bpf_map_lookup_elem, bpf_sk_assign, bpf_sk_release};
use aya_ebpf::macros::{map, sk_lookup};
use aya_ebpf::maps::{Array, HashMap, LpmTrie, PerCpuArray, SockMap, lpm_trie::Key};
use aya_ebpf::programs::SkLookupContext;
use core::ptr::{NonNull, addr_of, read_volatile};
use interceptor_ebpf::*;

#[map] // Slot to the daemon's listener. The kernel empties a slot when its listener closes.
static SERVICES: SockMap = SockMap::with_max_entries(SLOTS, 0);
#[map] // Protected port to slot.
static PORTS: HashMap<u16, u32> = HashMap::with_max_entries(SLOTS, 0);
#[map] // Sources the operator lets through, daemon or no daemon.
static EXEMPT: LpmTrie<Source, u32> = LpmTrie::with_max_entries(EXEMPTIONS, 0);
#[map] // The daemon's own upstreams. Not LRU: an evicted one would be steered to the daemon.
static OWN: HashMap<Tuple, u32> = HashMap::with_max_entries(UPSTREAMS, 0);
#[map] // Slot to what happened.
static COUNTERS: PerCpuArray<Counts> = PerCpuArray::with_max_entries(SLOTS, 0);
#[map] // Slot to cookie of the listener. For user space, not read here; nor is the next.
static LISTENERS: Array<u64> = Array::with_max_entries(SLOTS, 0);
#[map]
static META: Array<Meta> = Array::with_max_entries(1, 0);

/// Reads one word of the context; the verifier wants each at a constant offset.
macro_rules! read {
    ($c:ident.$field:ident) => {
        unsafe { read_volatile(addr_of!((*$c).$field)) }
    };
    ($c:ident.$field:ident[..]) => {
        [read!($c, $field, 0), read!($c, $field, 1), read!($c, $field, 2), read!($c, $field, 3)]
    };
    ($c:ident, $field:ident, $i:literal) => {
        unsafe { read_volatile(addr_of!((*$c).$field[$i])) }
    };
}

#[sk_lookup]
pub fn interceptor(ctx: SkLookupContext) -> u32 {
    let (c, port) = (ctx.lookup, unsafe { (*ctx.lookup).local_port } as u16);
    match unsafe { PORTS.get(port) } {
        Some(&slot) if read!(c.protocol) == 6 => judge(c, port, slot),
        _ => PASS,
    }
}

#[inline(always)]
fn judge(c: *mut bpf_sk_lookup, port: u16, slot: u32) -> u32 {
    let Some(n) = COUNTERS.get_ptr_mut(slot) else { return REFUSE };
    let (family, local, remote) = match read!(c.family) {
        2 => (IPV4, mapped(read!(c.local_ip4)), mapped(read!(c.remote_ip4))),
        _ => (IPV6, read!(c.local_ip6[..]), read!(c.remote_ip6[..])),
    };
    // IPv4 dressed as IPv6 on the wire is a lie and must meet no exemption written for IPv4.
    if family == IPV6 && (is_mapped(&local) || is_mapped(&remote)) {
        unsafe { (*n).refused += 1 };
        return REFUSE;
    }
    let source = Key::new(8 * size_of::<Source>() as u32, Source { port, family, addr: remote });
    if EXEMPT.get(source).is_some() {
        unsafe { (*n).exempt += 1 };
        return PASS;
    }
    // The map's own method would assign at once, but an exemption of the daemon's upstream must
    // count only while a listener lives. The reference is ours to give back.
    let listener = unsafe { bpf_map_lookup_elem(addr_of!(SERVICES) as _, addr_of!(slot).cast()) };
    let Some(listener) = NonNull::new(listener) else {
        unsafe { (*n).refused += 1 };
        return REFUSE;
    };
    let remote_port = u16::from_be(read!(c.remote_port));
    let own = unsafe { OWN.get(Tuple { local, remote, local_port: port, remote_port }) }.is_some();
    let steered = !own && unsafe { bpf_sk_assign(c.cast(), listener.as_ptr(), 0) } == 0;
    unsafe { bpf_sk_release(listener.as_ptr()) };
    match unsafe { &mut *n } {
        n if own => n.own += 1,
        n if steered => n.steered += 1,
        n => n.refused += 1,
    }
    if own || steered { PASS } else { REFUSE }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 18] = *b"MIT OR Apache-2.0\0";
