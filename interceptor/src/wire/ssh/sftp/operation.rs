//! What an agent wants to do, in words for policy and record.

use russh_sftp::protocol::{FileAttributes, OpenFlags};

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verb {
    /// Open a file; [`Operation::flags`] and the place's [`Touch`] say for what.
    Open,
    /// Open a directory to list it.
    List,
    /// Look at attributes of a file or its file system.
    Stat,
    /// Change attributes, or cut a file.
    SetStat,
    /// Make a directory.
    MakeDirectory,
    /// Remove a directory.
    RemoveDirectory,
    /// Remove a file.
    Remove,
    /// Rename; places: from, to.
    Rename,
    /// Make a hard link; places: the file, its new name.
    HardLink,
    /// Make a symbolic link; places: the link, what it points to.
    Symlink,
    /// Read a symbolic link.
    ReadLink,
    /// Ask for a path's canonical form.
    RealPath,
    /// Copy between two open files on the server; places: from, to.
    Copy,
}

impl Verb {
    /// For the record.
    pub fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::List => "list",
            Self::Stat => "stat",
            Self::SetStat => "setstat",
            Self::MakeDirectory => "mkdir",
            Self::RemoveDirectory => "rmdir",
            Self::Remove => "remove",
            Self::Rename => "rename",
            Self::HardLink => "link",
            Self::Symlink => "symlink",
            Self::ReadLink => "readlink",
            Self::RealPath => "realpath",
            Self::Copy => "copy",
        }
    }
}

/// What an operation does at one of its places.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Touch {
    /// Learns that it exists and what it is.
    Look,
    /// Learns the names in it.
    List,
    /// Reads its content.
    Read,
    /// Creates it or changes its content.
    Write,
    /// Both, or makes both possible under another name.
    ReadWrite,
    /// Changes mode, owner, times or size.
    Attributes,
    /// Removes it.
    Remove,
    /// Removes it here; its content goes on under another name.
    Move,
}

impl Touch {
    /// Content can be read at this place, or elsewhere afterwards.
    pub fn reads(self) -> bool {
        matches!(self, Self::Read | Self::ReadWrite | Self::Move)
    }

    /// Something is different afterwards.
    pub fn changes(self) -> bool {
        !matches!(self, Self::Look | Self::List | Self::Read)
    }
}

/// One path of an operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// What is done there.
    pub touch: Touch,
    /// Absolute, as the server resolved it; this is also what the server is then asked for.
    /// Of operations on a link itself only the directory is resolved.
    pub path: String,
    /// As the agent wrote it.
    pub asked: String,
    /// False: the server could not resolve it, and `path` is `asked`, cleaned lexically.
    pub resolved: bool,
}

/// One thing that an agent asks for on an SFTP channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    /// What.
    pub verb: Verb,
    /// Where; one or two, in the order that [`Verb`] gives.
    pub places: Vec<Place>,
    /// How a file is to be opened: `read`, `write`, `append`, `create`, `truncate`, `exclusive`.
    pub flags: Vec<&'static str>,
    /// Attributes to set, in words; empty if none.
    pub attributes: String,
}

impl Operation {
    /// One line for the record and for a person who decides, e.g.
    /// `open /srv/a.txt (asked: a.txt) write create truncate, mode 0644`.
    pub fn text(&self) -> String {
        let mut text = String::from(self.verb.name());
        for (n, place) in self.places.iter().enumerate() {
            text.push_str(if n == 0 { " " } else { " -> " });
            text.extend(place.path.escape_debug());
            if place.path != place.asked {
                text.push_str(" (asked: ");
                text.extend(place.asked.escape_debug());
                text.push(')');
            }
            if !place.resolved {
                text.push_str(" (unresolved)");
            }
        }
        for flag in &self.flags {
            text.push(' ');
            text.push_str(flag);
        }
        if !self.attributes.is_empty() {
            text.push_str(", ");
            text.push_str(&self.attributes);
        }
        text
    }
}

/// Flags of an OPEN in words.
pub(super) fn flags(flags: OpenFlags) -> Vec<&'static str> {
    [
        (OpenFlags::READ, "read"),
        (OpenFlags::WRITE, "write"),
        (OpenFlags::APPEND, "append"),
        (OpenFlags::CREATE, "create"),
        (OpenFlags::TRUNCATE, "truncate"),
        (OpenFlags::EXCLUDE, "exclusive"),
    ]
    .into_iter()
    .filter(|(flag, _)| flags.contains(*flag))
    .map(|(_, word)| word)
    .collect()
}

/// Attributes in words.
pub(super) fn attributes(attrs: &FileAttributes) -> String {
    let mut words = Vec::new();
    words.extend(attrs.size.map(|size| format!("size {size}")));
    words.extend(attrs.permissions.map(|mode| format!("mode {mode:04o}")));
    words.extend(attrs.uid.map(|uid| format!("uid {uid}")));
    words.extend(attrs.gid.map(|gid| format!("gid {gid}")));
    words.extend(attrs.atime.map(|time| format!("atime {time}")));
    words.extend(attrs.mtime.map(|time| format!("mtime {time}")));
    words.join(", ")
}
