//! Changes of open files: judged by the paths that they were opened by, while what comes after
//! them on the same handles waits.

use russh_sftp::protocol::StatusCode;

use super::agent::NOT_OPENED_SO;
use super::frame::Frame;
use super::handles::Serial;
use super::operation::{Operation, Place, Touch, Verb};
use super::{Guard, Wants, request};

/// A packet that changes open files. Their paths were resolved when they were opened.
#[derive(Debug)]
pub(super) struct Held {
    pub frame: Frame,
    /// Of the handle that is read and of the one that is changed; often the same.
    pub serials: (Serial, Serial),
    /// What the file is cut to.
    pub size: Option<u64>,
    pub operation: Operation,
}

impl Guard {
    /// A packet that changes open files has come: they take no other before its decision.
    fn submit_held(&mut self, held: Held) {
        let (first, second) = held.serials;
        for serial in [first, second] {
            if let Some(handle) = self.handles.get(serial) {
                handle.judged += 1;
            }
        }
        self.judge_held(held);
    }

    /// Takes up what waited for a decision on this handle.
    fn wake(&mut self, serial: Serial) {
        loop {
            let Some(handle) = self.handles.get(serial) else { return };
            if handle.judged > 0 {
                return;
            }
            let Some(frame) = handle.waiting.pop_front() else { return };
            self.waiting = self.waiting.saturating_sub(frame.len());
            // What still waits comes after this one, wherever it goes now.
            let rest = std::mem::take(&mut handle.waiting);
            // It was decoded before it was put there.
            if let Ok(request) = request::parse(&frame) {
                self.on_handle(frame, request);
            }
            if let Some(handle) = self.handles.get(serial) {
                handle.waiting.extend(rest);
            }
        }
    }

    /// A permitted change of open files goes to the server.
    pub(super) fn run_held(&mut self, held: Held) {
        let copied = held.operation.verb == Verb::Copy;
        if let Some(handle) = self.handles.get(held.serials.1) {
            let cut = held.size.is_some_and(|size| size != handle.write.next());
            if copied || cut {
                handle.write.spoil();
            }
        }
        self.forward(held.frame, Wants::Status);
    }

    /// The decision on them is made, and what waited goes on.
    pub(super) fn release_handles(&mut self, (first, second): (Serial, Serial)) {
        for serial in [first, second] {
            if let Some(handle) = self.handles.get(serial) {
                handle.judged = handle.judged.saturating_sub(1);
            }
        }
        self.wake(first);
        self.wake(second);
    }

    pub(super) fn judge_set_open(
        &mut self,
        frame: Frame,
        serial: Serial,
        size: Option<u64>,
        attributes: String,
    ) {
        let Some(place) = self.open_place(serial, Touch::Attributes) else { return };
        let operation =
            Operation { verb: Verb::SetStat, places: vec![place], flags: Vec::new(), attributes };
        self.submit_held(Held { frame, serials: (serial, serial), size, operation });
    }

    pub(super) fn judge_copy(
        &mut self,
        frame: Frame,
        from: Serial,
        to: Serial,
        attributes: String,
    ) {
        let writes = self.handles.get(to).is_some_and(|handle| handle.opened.writes);
        let places = (self.open_place(from, Touch::Read), self.open_place(to, Touch::Write));
        let (true, (Some(a), Some(b))) = (writes, places) else {
            return self.refuse(frame.id(), StatusCode::PermissionDenied, NOT_OPENED_SO);
        };
        let operation =
            Operation { verb: Verb::Copy, places: vec![a, b], flags: Vec::new(), attributes };
        self.submit_held(Held { frame, serials: (from, to), size: None, operation });
    }

    /// An open file as a place.
    fn open_place(&mut self, serial: Serial, touch: Touch) -> Option<Place> {
        let path = self.handles.get(serial)?.opened.path.clone();
        Some(Place { touch, asked: path.clone(), path, resolved: true })
    }
}
