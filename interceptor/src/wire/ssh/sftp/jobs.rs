//! Operations on their way to a decision: resolve, judge, send.
//!
//! A job is *running* from the question for its paths to the moment that it is sent on, refused
//! or parked. Jobs that move names run alone, all others beside each other; they start in the
//! order in which they came. So between a path's resolution and the operation that it was judged
//! for, nothing of this channel comes that could make the path mean something else.
//!
//! A job whose decision does not come at once is parked: it no longer runs, and when it is
//! permitted its paths are resolved again and must give what was judged, or it is judged anew.

use std::collections::{HashMap, VecDeque};

use russh_sftp::protocol::StatusCode;

use super::frame::Frame;
use super::handles::Opened;
use super::held::Held;
use super::operation::{Operation, Place, Verb};
use super::request::{self, How, OnPath};
use super::{Asked, Decision, Guard, SftpError, Step, Ticket, Wants, path};

/// Judgements of one operation whose paths never stay the same.
const MAX_JUDGEMENTS: u8 = 8;

const WITHHELD: &str = "interceptor: the content of this file is withheld";

/// What a job does in the end.
#[derive(Debug)]
pub(super) enum Action {
    Path(OnPath),
    Handle(Held),
}

/// What is known of one path.
#[derive(Debug)]
enum Found {
    Awaited,
    Path(String),
    /// The server's refusal.
    No(Frame),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Queued,
    Resolving,
    Judging,
    Parked,
}

#[derive(Debug)]
struct Job {
    /// The agent's id.
    id: u32,
    action: Action,
    state: State,
    found: Vec<Found>,
    /// The server's answer, where it is also the agent's.
    answer: Option<Frame>,
    judged: Option<Vec<Place>>,
    judgements: u8,
}

/// All jobs of a channel.
#[derive(Debug, Default)]
pub(super) struct Jobs {
    jobs: HashMap<Ticket, Job>,
    queue: VecDeque<Ticket>,
    /// Judged, without a decision yet, since the last bytes came.
    undecided: Vec<Ticket>,
    /// How many run, and whether one of them moves names.
    running: usize,
    alone: bool,
    last: u64,
}

impl Jobs {
    pub fn len(&self) -> usize {
        self.jobs.len()
    }

    fn ticket(&mut self) -> Ticket {
        self.last += 1;
        Ticket(self.last)
    }

    fn stop(&mut self, state: State) {
        if matches!(state, State::Resolving | State::Judging) {
            self.running = self.running.saturating_sub(1);
            self.alone = false;
        }
    }
}

impl Job {
    fn new(id: u32, action: Action) -> Self {
        Self {
            id,
            action,
            state: State::Queued,
            found: Vec::new(),
            answer: None,
            judged: None,
            judgements: 0,
        }
    }

    fn moves_names(&self) -> bool {
        matches!(&self.action, Action::Path(request) if request.moves_names())
    }

    /// The server's refusal to resolve a path without which the operation cannot be done.
    fn refusal(&mut self) -> Option<Frame> {
        let Action::Path(request) = &self.action else { return None };
        let needed =
            request.named.iter().zip(&self.found).position(|(named, found)| {
                named.how != How::Text && matches!(found, Found::No(_))
            })?;
        match std::mem::replace(&mut self.found[needed], Found::Awaited) {
            Found::No(frame) => Some(frame),
            _ => None,
        }
    }

    /// The places as they are known now. `None`: one is relative, and to what is unknown.
    fn places(&self, home: Option<&str>) -> Option<Vec<Place>> {
        let Action::Path(request) = &self.action else { return None };
        let place = |(named, found): (&request::Named, &Found)| {
            let (resolved, path) = match (found, seen_from_link(request, named)) {
                (Found::Path(path), _) => (true, path.clone()),
                (_, seen) if seen.starts_with('/') => (false, path::clean("/", &seen)),
                (_, seen) => (false, path::clean(home?, &seen)),
            };
            Some(Place { touch: named.touch, path, asked: named.asked.clone(), resolved })
        };
        request.named.iter().zip(&self.found).map(place).collect()
    }
}

/// The path to ask for: a link's text is seen from the directory of the link.
fn seen_from_link(request: &OnPath, named: &request::Named) -> String {
    match (named.how, request.named.first().and_then(|link| path::split(&link.asked))) {
        (How::Text, Some((directory, _))) if !named.asked.starts_with('/') => {
            path::join(directory, &named.asked)
        }
        _ => named.asked.clone(),
    }
}

impl Guard {
    /// Judges a change of open files.
    pub(super) fn judge_held(&mut self, held: Held) {
        let places = held.operation.places.clone();
        let ticket = self.jobs.ticket();
        self.jobs.jobs.insert(ticket, Job::new(held.frame.id(), Action::Handle(held)));
        self.judge(ticket, places);
    }

    /// A request with paths has come.
    pub(super) fn submit(&mut self, id: u32, request: OnPath) {
        let opens = matches!(request.verb, Verb::Open | Verb::List);
        if opens && self.handles.len() + self.opening() >= self.limits.handles {
            let words = "interceptor: too many open files";
            return self.refuse(id, StatusCode::Failure, words);
        }
        let ticket = self.jobs.ticket();
        self.jobs.jobs.insert(ticket, Job::new(id, Action::Path(request)));
        self.jobs.queue.push_back(ticket);
        self.start_jobs();
    }

    fn start_jobs(&mut self) {
        while let Some(&ticket) = self.jobs.queue.front() {
            let Some(job) = self.jobs.jobs.get_mut(&ticket) else {
                self.jobs.queue.pop_front();
                continue;
            };
            let alone = job.moves_names();
            if self.jobs.alone || alone && self.jobs.running > 0 {
                return;
            }
            self.jobs.queue.pop_front();
            job.state = State::Resolving;
            self.jobs.running += 1;
            self.jobs.alone = alone;
            self.resolve(ticket);
        }
    }

    /// Asks the server for each of the job's paths.
    fn resolve(&mut self, ticket: Ticket) {
        let Some(job) = self.jobs.jobs.get_mut(&ticket) else { return };
        let Action::Path(request) = &job.action else { return };
        let mut questions = Vec::new();
        for named in &request.named {
            let asked = seen_from_link(request, named);
            questions.push(match (named.how, path::split(&asked)) {
                (How::Keep, Some((parent, _))) => Some(parent.to_owned()),
                (How::Itself, _) => None,
                _ => Some(path::or_here(&asked).to_owned()),
            });
        }
        job.found = questions.iter().map(|_| Found::Awaited).collect();
        for (place, question) in questions.into_iter().enumerate() {
            let id = self.fresh_id();
            let bytes = match question {
                Some(path) => super::server::realpath(id, path),
                None => match self.jobs.jobs.get(&ticket).map(|job| &job.action) {
                    Some(Action::Path(request)) => request.encode_as_asked(id),
                    _ => None,
                },
            };
            let Some(bytes) = bytes else { return self.fail(ticket) };
            self.asked.insert(id, Asked::Resolve { job: ticket, place });
            self.steps.push_back(Step::ToServer(bytes));
        }
    }

    /// The server has resolved a path, or says why not.
    pub(super) fn resolved(
        &mut self,
        ticket: Ticket,
        place: usize,
        path: Option<String>,
        answer: Frame,
    ) {
        let Some(job) = self.jobs.jobs.get_mut(&ticket) else { return };
        if path.is_none() && !super::server::is_status(&answer) {
            let words = "interceptor: the path leads to one that is not UTF-8";
            return self.finish(ticket, StatusCode::PermissionDenied, words);
        }
        let Action::Path(request) = &job.action else { return };
        let (Some(named), Some(found)) = (request.named.get(place), job.found.get_mut(place))
        else {
            return;
        };
        *found = match path {
            None => Found::No(answer),
            Some(path) => {
                let kept = if named.how == How::Keep { path::split(&named.asked) } else { None };
                job.answer = (named.how == How::Itself).then_some(answer);
                Found::Path(kept.map_or(path.clone(), |(_, name)| path::join(&path, name)))
            }
        };
        if job.found.iter().any(|found| matches!(found, Found::Awaited)) {
            return;
        }
        match job.places(self.home.as_deref()) {
            None => self.fail(ticket),
            Some(places) if job.judged.as_ref() == Some(&places) => self.permit(ticket),
            Some(places) => self.judge(ticket, places),
        }
    }

    fn judge(&mut self, ticket: Ticket, places: Vec<Place>) {
        let Some(mut job) = self.jobs.jobs.remove(&ticket) else { return };
        job.judgements += 1;
        if job.judgements > MAX_JUDGEMENTS {
            self.jobs.jobs.insert(ticket, job);
            return self.fail(ticket);
        }
        job.state = State::Judging;
        let operation = match &job.action {
            Action::Path(request) => Operation {
                verb: request.verb,
                places: places.clone(),
                flags: request.flags.clone(),
                attributes: request.attributes.clone(),
            },
            Action::Handle(held) => held.operation.clone(),
        };
        job.judged = Some(places);
        // A new name each time: a late decision must not count for other paths.
        let ticket = self.jobs.ticket();
        self.jobs.jobs.insert(ticket, job);
        self.jobs.undecided.push(ticket);
        self.steps.push_back(Step::Judge { ticket, operation });
    }

    /// Answers a [`Step::Judge`]. A ticket that is not open is ignored. An error is the agent's:
    /// what it sent meanwhile is taken up again.
    pub fn decide(&mut self, ticket: Ticket, decision: Decision) -> Result<(), SftpError> {
        self.alive()?;
        self.decided(ticket, decision);
        self.read_agent()
    }

    fn decided(&mut self, ticket: Ticket, decision: Decision) {
        let Some(job) = self.jobs.jobs.get_mut(&ticket) else { return };
        if !matches!(job.state, State::Judging | State::Parked) {
            return;
        }
        self.jobs.undecided.retain(|undecided| *undecided != ticket);
        let reads = job.judged.iter().flatten().any(|place| place.touch.reads());
        match decision {
            Decision::Refuse { message } => {
                self.finish(ticket, StatusCode::PermissionDenied, &message);
            }
            Decision::Permit { withhold: true } if reads => {
                self.finish(ticket, StatusCode::PermissionDenied, WITHHELD);
            }
            Decision::Permit { .. } => match (&job.action, job.state) {
                (Action::Path(_), State::Parked) => {
                    job.state = State::Queued;
                    self.jobs.queue.push_front(ticket);
                    self.start_jobs();
                }
                _ => self.permit(ticket),
            },
        }
    }

    /// Bytes have come before a decision: what was judged may no longer be so.
    pub(super) fn park_undecided(&mut self) {
        if self.jobs.undecided.is_empty() {
            return;
        }
        for ticket in std::mem::take(&mut self.jobs.undecided) {
            let Some(job) = self.jobs.jobs.get_mut(&ticket) else { continue };
            let before = std::mem::replace(&mut job.state, State::Parked);
            if matches!(job.action, Action::Path(_)) {
                self.jobs.stop(before);
            }
        }
        self.start_jobs();
    }

    /// The job ends with a status.
    fn finish(&mut self, ticket: Ticket, code: StatusCode, words: &str) {
        if let Some(job) = self.remove(ticket) {
            self.refuse(job.id, code, words);
            self.released(&job.action);
        }
    }

    fn fail(&mut self, ticket: Ticket) {
        self.finish(ticket, StatusCode::Failure, "interceptor: the path cannot be resolved");
    }

    fn remove(&mut self, ticket: Ticket) -> Option<Job> {
        let job = self.jobs.jobs.remove(&ticket)?;
        if matches!(job.action, Action::Path(_)) {
            self.jobs.stop(job.state);
        }
        Some(job)
    }

    /// What waited for this job goes on.
    fn released(&mut self, action: &Action) {
        match action {
            Action::Path(_) => self.start_jobs(),
            Action::Handle(held) => self.release_handles(held.serials),
        }
    }

    /// The operation is done: sent to the server, or answered with what the server has said.
    fn permit(&mut self, ticket: Ticket) {
        let Some(mut job) = self.remove(ticket) else { return };
        let answer = job.refusal().or(job.answer.take());
        match (job.action, answer) {
            (Action::Path(_), Some(frame)) => {
                self.steps.push_back(Step::ToAgent(frame.with_id(job.id)));
                self.start_jobs();
            }
            (Action::Path(request), None) => {
                let places = job.judged.unwrap_or_default();
                self.send(job.id, request, &places);
                self.start_jobs();
            }
            (Action::Handle(held), _) => {
                let serials = held.serials;
                self.run_held(held);
                self.release_handles(serials);
            }
        }
    }

    /// Sends an operation with the paths that were judged.
    fn send(&mut self, id: u32, request: OnPath, places: &[Place]) {
        let wants = match (request.verb, request.open, places.first()) {
            (Verb::Open, Some(flags), Some(place)) => {
                Wants::Handle(Opened::file(flags, &place.path))
            }
            (Verb::List, _, Some(place)) => Wants::Handle(Opened::directory(&place.path)),
            (Verb::Stat, ..) if request.is_extended() => Wants::Extended,
            (Verb::Stat, ..) => Wants::Attributes,
            (Verb::ReadLink, ..) => Wants::Names,
            _ => Wants::Status,
        };
        let paths: Vec<&str> = places.iter().map(|place| place.path.as_str()).collect();
        let asked = Asked::Agent { id, wants };
        if self.ask(asked, |id| request.encode(id, &paths)).is_none() {
            self.refuse(id, StatusCode::Failure, "interceptor: the request cannot be encoded");
        }
    }

    /// Files and directories that are being opened.
    fn opening(&self) -> usize {
        let opens = |job: &&Job| match &job.action {
            Action::Path(request) => matches!(request.verb, Verb::Open | Verb::List),
            Action::Handle(_) => false,
        };
        let sent = |asked: &&Asked| matches!(asked, Asked::Agent { wants: Wants::Handle(_), .. });
        self.jobs.jobs.values().filter(opens).count() + self.asked.values().filter(sent).count()
    }
}
