//! Files and directories that an agent has open, and what it may do with each.

use std::collections::{HashMap, VecDeque};

use russh_sftp::protocol::OpenFlags;

use super::frame::Frame;
use super::request;
use super::transfer::{Direction, Passage, Transfer};

/// Names an open handle for as long as the channel lives. The server's own names are used again.
pub(super) type Serial = u64;

/// How a handle came to be.
#[derive(Debug, Clone)]
pub(super) struct Opened {
    /// The path that was judged.
    pub path: String,
    pub directory: bool,
    pub reads: bool,
    pub writes: bool,
    /// Nothing of an earlier content is left.
    pub fresh: bool,
    /// Writes go to the end, wherever they are said to go.
    pub append: bool,
}

impl Opened {
    pub fn file(flags: OpenFlags, path: &str) -> Self {
        Self {
            path: path.to_owned(),
            directory: false,
            reads: request::reads(flags),
            writes: flags.contains(OpenFlags::WRITE),
            fresh: flags.contains(OpenFlags::TRUNCATE)
                || flags.contains(OpenFlags::CREATE | OpenFlags::EXCLUDE),
            append: flags.contains(OpenFlags::APPEND),
        }
    }

    pub fn directory(path: &str) -> Self {
        let path = path.to_owned();
        Self { path, directory: true, reads: false, writes: false, fresh: false, append: false }
    }
}

/// One open handle.
#[derive(Debug)]
pub(super) struct Handle {
    pub opened: Opened,
    pub read: Passage,
    pub write: Passage,
    /// Size as the server says, for files that are read.
    pub size: Option<u64>,
    /// The first offset known to be at or behind the end.
    pub end_at: Option<u64>,
    /// Packets that wait for a decision on an earlier one of this handle.
    pub waiting: VecDeque<Frame>,
    /// Decisions that are awaited.
    pub judged: usize,
}

impl Handle {
    fn new(opened: Opened) -> Self {
        let mut write = Passage::new();
        if opened.append || !opened.fresh {
            write.spoil();
        }
        Self {
            opened,
            read: Passage::new(),
            write,
            size: None,
            end_at: None,
            waiting: VecDeque::new(),
            judged: 0,
        }
    }

    /// Packets must wait.
    pub fn busy(&self) -> bool {
        self.judged > 0 || !self.waiting.is_empty()
    }

    /// What passed, one for each direction that was used or could have been.
    fn end(self, window: &mut usize) -> Vec<Transfer> {
        let Self { opened, read, write, size, end_at, .. } = self;
        let mut ended = Vec::new();
        if opened.reads && (read.used() || !opened.writes) {
            let whole = |next| size == Some(next) || end_at.is_some_and(|end| next >= end);
            ended.push(read.end(&opened.path, Direction::Read, window, whole));
        }
        if opened.writes {
            ended.push(write.end(&opened.path, Direction::Write, window, |_| true));
        }
        ended
    }
}

/// All open handles of a channel.
#[derive(Debug)]
pub(super) struct Handles {
    /// By the server's names.
    names: HashMap<Vec<u8>, Serial>,
    open: HashMap<Serial, Handle>,
    last: Serial,
    /// What early pieces may still take, in bytes.
    pub window: usize,
}

impl Handles {
    pub fn new(window: usize) -> Self {
        Self { names: HashMap::new(), open: HashMap::new(), last: 0, window }
    }

    /// Open handles, those among them that are being closed included.
    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// The server opened one. `None` if it uses a name that is taken.
    pub fn open(&mut self, name: Vec<u8>, opened: Opened) -> Option<Serial> {
        if self.names.contains_key(&name) {
            return None;
        }
        self.last += 1;
        self.names.insert(name, self.last);
        self.open.insert(self.last, Handle::new(opened));
        Some(self.last)
    }

    /// The handle that the agent means.
    pub fn named(&self, name: &[u8]) -> Option<Serial> {
        self.names.get(name).copied()
    }

    pub fn get(&mut self, serial: Serial) -> Option<&mut Handle> {
        self.open.get_mut(&serial)
    }

    /// The handle together with the budget for its early pieces.
    pub fn with_window(&mut self, serial: Serial) -> Option<(&mut Handle, &mut usize)> {
        self.open.get_mut(&serial).map(|handle| (handle, &mut self.window))
    }

    /// Its CLOSE is on its way: the name means nothing from now on.
    pub fn forget_name(&mut self, name: &[u8]) {
        self.names.remove(name);
    }

    /// The server has closed it.
    pub fn close(&mut self, serial: Serial) -> Vec<Transfer> {
        match self.open.remove(&serial) {
            Some(handle) if !handle.opened.directory => handle.end(&mut self.window),
            _ => Vec::new(),
        }
    }

    /// The channel has ended; whatever is open was not closed.
    pub fn abandon(&mut self) -> Vec<Transfer> {
        self.names.clear();
        let mut serials: Vec<Serial> = self.open.keys().copied().collect();
        serials.sort_unstable();
        let mut ended = Vec::new();
        for serial in serials {
            if let Some(handle) = self.open.get_mut(&serial) {
                for passage in [&mut handle.read, &mut handle.write] {
                    passage.failure.get_or_insert_with(|| "not closed".to_owned());
                }
            }
            ended.extend(self.close(serial));
        }
        ended
    }
}
