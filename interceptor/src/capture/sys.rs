//! The few commands of bpf(2) that aya 0.14 has no call for: read-only opening of pins, and
//! updating, inspecting and listing links.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::libc;

const OBJ_GET: libc::c_int = 7;
const OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const LINK_UPDATE: libc::c_int = 29;
const LINK_GET_FD_BY_ID: libc::c_int = 30;
const LINK_GET_NEXT_ID: libc::c_int = 31;
const LINK_DETACH: libc::c_int = 34;

const F_RDONLY: u32 = 1 << 3;
const LINK_TYPE_NETNS: u32 = 5;
const ATTACH_SK_LOOKUP: u32 = 36;

/// `union bpf_attr`, larger than any command used here needs; the rest must be zero.
#[derive(Default)]
#[repr(C, align(8))]
struct Attr([u32; 32]);

impl Attr {
    fn set(mut self, word: usize, value: u32) -> Self {
        self.0[word] = value;
        self
    }

    /// A 64-bit field at an even word.
    fn set_pointer(mut self, word: usize, pointer: *const libc::c_void) -> Self {
        let bytes = (pointer as u64).to_ne_bytes();
        self.0[word] = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        self.0[word + 1] = u32::from_ne_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
        self
    }

    /// # Safety
    /// Every pointer set in `self` is valid for what `command` does with it.
    unsafe fn call(&mut self, command: libc::c_int) -> io::Result<i32> {
        // SAFETY: the attribute block is as large as stated; its pointers are the caller's duty.
        let r = unsafe {
            libc::syscall(libc::SYS_bpf, command, self.0.as_mut_ptr(), size_of::<Self>())
        };
        if r < 0 { Err(io::Error::last_os_error()) } else { Ok(r as i32) }
    }

    /// # Safety
    /// As [`Attr::call`]; `command` returns a new file descriptor.
    unsafe fn call_fd(&mut self, command: libc::c_int) -> io::Result<OwnedFd> {
        // SAFETY: the caller's duty.
        let fd = unsafe { self.call(command)? };
        // SAFETY: the kernel just made this descriptor and nobody else knows it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd() as u32
}

/// Opens a pin. Read-only suffices for maps that are only looked at, and lets their mode be 0400.
pub(super) fn open_pin(path: &Path, read_only: bool) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let flags = if read_only { F_RDONLY } else { 0 };
    // SAFETY: `path` outlives the call and is terminated.
    unsafe { Attr::default().set_pointer(0, path.as_ptr().cast()).set(3, flags).call_fd(OBJ_GET) }
}

/// Lets the link run another program, atomically.
pub(super) fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: no pointers.
    unsafe { Attr::default().set(0, raw(link)).set(1, raw(program)).call(LINK_UPDATE)? };
    Ok(())
}

/// Detaches a link whoever else holds it open.
pub(super) fn detach_link(link: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: no pointers.
    unsafe { Attr::default().set(0, raw(link)).call(LINK_DETACH)? };
    Ok(())
}

/// What the kernel says of an sk_lookup link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LinkInfo {
    pub id: u32,
    pub program: u32,
    /// Inode of its network namespace; 0 when it is detached or the namespace is gone.
    pub netns: u64,
}

/// What the kernel says of a link; `None` when it is not one of sk_lookup.
pub(super) fn link_info(link: BorrowedFd<'_>) -> io::Result<Option<LinkInfo>> {
    // struct bpf_link_info: type, id, prog_id, padding, then for netns: inode, attach type.
    let mut info = [0u32; 32];
    let pointer = info.as_mut_ptr().cast_const().cast();
    let mut attr =
        Attr::default().set(0, raw(link)).set(1, size_of_val(&info) as u32).set_pointer(2, pointer);
    // SAFETY: `info` outlives the call and is as long as stated.
    unsafe { attr.call(OBJ_GET_INFO_BY_FD)? };
    let ours = info[0] == LINK_TYPE_NETNS && info[5] == ATTACH_SK_LOOKUP;
    Ok(ours.then_some(LinkInfo { id: info[1], program: info[2], netns: info[4].into() }))
}

/// Id and tag of a program.
pub(super) fn program_info(program: BorrowedFd<'_>) -> io::Result<(u32, u64)> {
    // struct bpf_prog_info: type, id, tag (8 bytes), then more than is needed here.
    let mut info = [0u32; 64];
    let pointer = info.as_mut_ptr().cast_const().cast();
    let length = size_of_val(&info) as u32;
    let mut attr = Attr::default().set(0, raw(program)).set(1, length).set_pointer(2, pointer);
    // SAFETY: `info` outlives the call and is as long as stated.
    unsafe { attr.call(OBJ_GET_INFO_BY_FD)? };
    let (high, low) = (u32::from_be(info[2]), u32::from_be(info[3]));
    Ok((info[1], u64::from(high) << 32 | u64::from(low)))
}

/// Every sk_lookup link of the machine. Needs CAP_SYS_ADMIN.
pub(super) fn lookup_links() -> io::Result<Vec<LinkInfo>> {
    let (mut found, mut id) = (Vec::new(), 0);
    loop {
        let mut attr = Attr::default().set(0, id);
        // SAFETY: no pointers.
        match unsafe { attr.call(LINK_GET_NEXT_ID) } {
            Ok(_) => id = attr.0[1],
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => return Ok(found),
            Err(e) => return Err(e),
        }
        // SAFETY: no pointers.
        match unsafe { Attr::default().set(0, id).call_fd(LINK_GET_FD_BY_ID) } {
            Ok(fd) => found.extend(link_info(fd.as_fd())?),
            // It went away between the two calls.
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {}
            Err(e) => return Err(e),
        }
    }
}
