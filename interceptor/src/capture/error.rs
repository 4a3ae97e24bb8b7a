//! Why something of the kernel side could not be done, and what to do about it.

use std::io;
use std::path::{Path, PathBuf};

/// Why something of the kernel side could not be done.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// There are no pins.
    #[error("{}: nothing is attached; run `interceptor capture attach` first", dir.display())]
    NotAttached {
        /// Where pins were looked for.
        dir: PathBuf,
    },
    /// The kernel refused for lack of privilege.
    #[error(
        "{what}: not permitted; attaching and detaching need root (or CAP_BPF and CAP_NET_ADMIN), \
         serving needs the user that `interceptor capture attach --owner` named, and before \
         Linux 5.19 also CAP_BPF"
    )]
    Denied {
        /// What was tried.
        what: String,
    },
    /// This kernel has no bpf(2), or not what the program needs.
    #[error(
        "{what}: this kernel cannot do it; Linux 5.9 or newer with CONFIG_BPF_SYSCALL and \
         CONFIG_BPF_STREAM_PARSER (socket maps) is needed"
    )]
    Unsupported {
        /// What was tried.
        what: String,
    },
    /// There is no eBPF object to load.
    #[error(
        "this binary was built without the eBPF object; run `cargo xtask build-ebpf` and build \
         again, or name one with `--object target/bpf/interceptor-capture.o`"
    )]
    NoObject,
    /// The object is not ours, or the verifier refused it.
    #[error("eBPF object {object}: {message}")]
    BadObject {
        /// Path, or "built in".
        object: String,
        /// What is wrong with it.
        message: String,
    },
    /// The pins were made by an incompatible version.
    #[error(
        "{}: attached by an incompatible version (layout {found}, this one has {wanted}); stop the \
         protected services, then run `interceptor capture detach` and `interceptor capture attach`",
        dir.display()
    )]
    Layout {
        /// The pins.
        dir: PathBuf,
        /// What stands there.
        found: u32,
        /// What this version writes.
        wanted: u32,
    },
    /// The pins contradict each other.
    #[error("{}: {message}; run `interceptor capture attach` again", dir.display())]
    Inconsistent {
        /// The pins.
        dir: PathBuf,
        /// What does not fit.
        message: String,
    },
    /// The pins belong to another network namespace. A listener made here would receive
    /// handshakes that nobody can answer.
    #[error(
        "{}: attached to network namespace {attached}, but this process runs in {here}; start it \
         in that namespace, or use another directory of pins for this one",
        dir.display()
    )]
    Namespace {
        /// The pins.
        dir: PathBuf,
        /// Inode of the namespace the program is attached to.
        attached: u64,
        /// Inode of the caller's.
        here: u64,
    },
    /// The port is not among the protected ones.
    #[error(
        "port {port} is not protected by {}; add its service to the configuration and run \
         `interceptor capture attach` again", dir.display()
    )]
    NotProtected {
        /// The port.
        port: u16,
        /// The pins.
        dir: PathBuf,
    },
    /// What was asked for cannot be.
    #[error("{0}")]
    Invalid(String),
    /// All entries for the daemon's own upstreams are taken.
    #[error("no more than {} upstream connections over TCP at a time", interceptor_ebpf::UPSTREAMS)]
    TooManyUpstreams,
    /// The service itself did not take the daemon's connection.
    #[error("cannot connect to {service}: {source}")]
    Connect {
        /// Where to.
        service: std::net::SocketAddr,
        /// The operating system's reason.
        source: io::Error,
    },
    /// The operating system refused something.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: String,
        /// The operating system's reason.
        source: io::Error,
    },
}

impl CaptureError {
    /// An error of a system call, sorted by what the reader can do about it.
    pub(super) fn from_io(what: impl Into<String>, source: io::Error) -> Self {
        let what = what.into();
        match source.raw_os_error() {
            Some(nix::libc::EPERM | nix::libc::EACCES) => Self::Denied { what },
            Some(nix::libc::ENOSYS) => Self::Unsupported { what },
            _ => Self::System { what, source },
        }
    }

    /// An error of aya, whose system error is somewhere in the chain of sources.
    pub(super) fn from_aya(what: impl Into<String>, e: &(dyn std::error::Error + 'static)) -> Self {
        let mut cause = Some(e);
        while let Some(c) = cause {
            if let Some(io) = c.downcast_ref::<io::Error>()
                && let Some(code) = io.raw_os_error()
            {
                return Self::from_io(what, io::Error::from_raw_os_error(code));
            }
            cause = c.source();
        }
        Self::System { what: what.into(), source: io::Error::other(e.to_string()) }
    }

    /// An error of opening a pin below `dir`; a missing one means that nothing is attached.
    pub(super) fn from_pin(dir: &Path, name: &str, source: io::Error) -> Self {
        if source.kind() == io::ErrorKind::NotFound {
            Self::NotAttached { dir: dir.into() }
        } else {
            Self::from_io(format!("open pin {}", dir.join(name).display()), source)
        }
    }
}
