//! The jobs that run beside the loop, and the lanes they run in.
//!
//! One lane is for whatever comes, a bundle of 30 GB included. The other takes light work only, restoring what is missing
//! of a known bundle and small bundles, so that these never wait behind a long import.
//!
//! Both lanes share the memory of the daemon. A bundle in the light lane is read within a part of the limits, and one
//! that needs more of them is heavy: it waits for the main lane. So at most one bundle takes all that the limits allow.
//!
//! A job that does nothing gives its lane to a file that could use it, and goes back into the queue: at once where it
//! waits for another bundle with the same names, after [`STILL`] where nothing of it moves (another bundle may be sending
//! the blob that it needs), and twice as long after each time. It begins again when the other job has ended.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bundle::Identity;
use oci_spec::image::Digest;
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};

use super::job::{Opened, Order, Pulled, Read};
use crate::progress::{Counters, Mark};
use crate::state::crash;

/// A file up to this size in bytes is imported within seconds.
const SMALL: u64 = 64 << 20;

/// How long an import keeps its lane from others at first although none of its bytes and images moves. containerd may take
/// minutes to commit or unpack a layer of some GB, and is left alone with that.
pub(super) const STILL: Duration = Duration::from_secs(300);

/// Where a job runs; each lane has one at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    /// Any bundle.
    Main,
    /// Repairs and small bundles.
    Light,
}

/// What a job came back with.
pub(super) enum Came {
    Opened(Opened),
    Imported(Box<Result<import::Imported, import::Error>>),
    Pulled(Pulled),
    /// It panicked, with this text. The daemon goes on: a job shares nothing that it could leave half done.
    Panicked(String),
}

/// How far a job has come.
pub(super) enum Stage {
    /// Its file is checked and read.
    Opening,
    /// Its bundle waits until another one that writes the same names is done.
    Waiting(Box<Read>),
    /// Its images are on their way.
    Importing(Arc<bundle::Bundle>),
    /// The images of its list are pulled.
    Pulling { catalog: Digest },
}

/// A job.
pub(super) struct Job {
    pub(super) order: Arc<Order>,
    lane: Lane,
    pub(super) stage: Stage,
    /// The records it writes, and what they are to point at, as soon as that is known.
    pub(super) records: BTreeMap<String, Digest>,
    /// Those of them that are left as they are.
    pub(super) left: BTreeSet<String>,
    /// How far its import has come.
    pub(super) counters: Arc<Counters>,
    /// A record it writes changed meanwhile, by its hand or another's.
    pub(super) disturbed: bool,
    /// Its file or the rules changed: whatever it comes back with, the file is not done.
    pub(super) is_outdated: bool,
    /// It gave its lane to another file.
    pub(super) has_yielded: bool,
    stillness: Stillness,
    /// How long it keeps its lane although nothing of it moves.
    patience: Duration,
    task: Option<AbortHandle>,
}

impl Job {
    /// When others may have its lane if nothing of it moves until then; none while its file is read.
    fn idle_from(&self) -> Option<Instant> {
        match self.stage {
            _ if self.has_yielded => None,
            Stage::Waiting(_) => Some(self.stillness.since),
            Stage::Importing(_) => Some(self.stillness.since + self.patience),
            Stage::Opening | Stage::Pulling { .. } => None,
        }
    }

    /// Whether only the main lane has the memory that its bundle takes.
    pub(super) fn is_too_heavy(&self, error: &bundle::Error) -> bool {
        self.lane == Lane::Light && matches!(error.fault, bundle::Fault::Limit { .. })
    }
}

/// Since when a job has not come any further.
#[derive(Debug)]
struct Stillness {
    mark: Mark,
    since: Instant,
}

impl Stillness {
    fn begins(now: Instant) -> Stillness {
        let mark = Mark::default();
        Stillness { mark, since: now }
    }

    /// Begins anew where the job has come further.
    fn note(&mut self, mark: Mark, now: Instant) {
        if self.mark != mark {
            *self = Stillness { mark, since: now };
        }
    }
}

/// A file that asks for a lane.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load<'a> {
    pub(super) name: &'a OsStr,
    pub(super) identity: &'a Identity,
    /// In bytes.
    pub(super) size: u64,
    /// Whether it was imported before.
    pub(super) is_repair: bool,
    /// Whether it starts only where no other job runs: the daemon crashed over it, or over one that runs.
    pub(super) is_alone: bool,
}

/// The jobs that run, by file name.
#[derive(Default)]
pub(super) struct Jobs {
    tasks: JoinSet<Came>,
    running: HashMap<OsString, Job>,
    /// Files that were found to be heavy.
    heavy: HashMap<OsString, Identity>,
    /// Files that gave their lane to others, and the file whose job each of them waits for.
    behind: HashMap<OsString, OsString>,
    /// How many times in a row the import of a file gave its lane to others.
    yields: HashMap<OsString, u32>,
}

impl Jobs {
    /// The lane that a file can start in now.
    pub(super) fn lane_for(&self, load: Load<'_>) -> Option<Lane> {
        let mut lanes = self.lanes_for(load);
        lanes.find(|lane| self.in_lane(*lane).is_none())
    }

    /// The job that does nothing in a lane in which the file could start. None where a lane is free. Where the file has to be
    /// alone, that is the only job there is.
    pub(super) fn idle_before(&self, load: Load<'_>, now: Instant) -> Option<&Job> {
        let mut jobs = Vec::new();
        if load.is_alone && self.running.len() == 1 && self.may_ask(load.name) {
            jobs.extend(self.running.values());
        }
        for lane in self.lanes_for(load) {
            jobs.push(self.in_lane(lane)?);
        }
        let is_idle = |job: &&Job| job.idle_from().is_some_and(|idle| idle <= now);
        jobs.into_iter().find(is_idle)
    }

    /// The lanes that a file may start in, the one that it should rather have first.
    fn lanes_for(&self, load: Load<'_>) -> impl Iterator<Item = Lane> + use<> {
        let Load { name, identity, .. } = load;
        let has_place = !load.is_alone || self.running.is_empty();
        let may_start = has_place && self.may_ask(name);
        let is_light = (load.is_repair || load.size <= SMALL) && !self.is_heavy(name, identity);
        [Lane::Light, Lane::Main]
            .into_iter()
            .filter(move |lane| may_start && (is_light || *lane == Lane::Main))
    }

    /// Whether a file neither has a lane nor waits for the job of another one to end.
    fn may_ask(&self, name: &OsStr) -> bool {
        let other = self.behind.get(name);
        let is_behind = other.is_some_and(|other| self.running.contains_key(other));
        !self.running.contains_key(name) && !is_behind
    }

    fn in_lane(&self, lane: Lane) -> Option<&Job> {
        self.running.values().find(|job| job.lane == lane)
    }

    /// Whether a file was found to be heavy.
    pub(super) fn is_heavy(&self, name: &OsStr, identity: &Identity) -> bool {
        self.heavy.get(name) == Some(identity)
    }

    /// Notes that a file is heavy. `is_there` says which files there still are.
    pub(super) fn note_heavy(
        &mut self,
        name: &OsStr,
        identity: &Identity,
        is_there: impl Fn(&OsStr) -> bool,
    ) {
        self.heavy.retain(|name, _| is_there(name));
        self.heavy.insert(name.to_owned(), identity.clone());
    }

    /// Notes which jobs have come further. Gives when to look again: when the next of them will have done nothing for too
    /// long.
    pub(super) fn note_progress(&mut self, now: Instant) -> Option<Instant> {
        for job in self.running.values_mut() {
            job.stillness.note(job.counters.mark(), now);
        }
        let idle = self.running.values().filter_map(Job::idle_from);
        idle.filter(|idle| *idle > now).min()
    }

    /// Takes a job from its lane. It comes back as one that was dropped, unless it waits: then it is over, and given back.
    pub(super) fn give_way(&mut self, name: &OsStr) -> Option<Job> {
        let other = self.running.keys().find(|other| *other != name).cloned();
        if let Some(other) = other {
            self.behind.insert(name.to_owned(), other);
        }
        let job = self.running.get_mut(name)?;
        job.has_yielded = true;
        if matches!(job.stage, Stage::Waiting(_)) {
            return self.end(name);
        }
        job.task.iter().for_each(AbortHandle::abort);
        *self.yields.entry(name.to_owned()).or_default() += 1;
        None
    }

    /// Whether a file waits until the job of another one has ended.
    pub(super) fn is_behind(&self, name: &OsStr) -> bool {
        self.behind.contains_key(name)
    }

    /// Starts a job with the opening of its file.
    pub(super) fn start(
        &mut self,
        order: Arc<Order>,
        lane: Lane,
        open: impl Future<Output = Opened> + Send + 'static,
    ) {
        let name = order.name.clone();
        let job = Job {
            order,
            lane,
            stage: Stage::Opening,
            records: BTreeMap::new(),
            left: BTreeSet::new(),
            counters: Arc::default(),
            disturbed: false,
            is_outdated: false,
            has_yielded: false,
            stillness: Stillness::begins(Instant::now()),
            patience: patience(self.yields.get(&name).copied().unwrap_or_default()),
            task: None,
        };
        self.behind.remove(&name);
        self.running.insert(name.clone(), job);
        self.spawn(&name, async move { Came::Opened(open.await) });
    }

    /// Goes on with a job.
    pub(super) fn go_on(
        &mut self,
        name: &OsStr,
        stage: Stage,
        work: impl Future<Output = Came> + Send + 'static,
    ) {
        if let Some(job) = self.running.get_mut(name) {
            job.stage = stage;
            job.stillness.since = Instant::now();
        }
        self.spawn(name, work);
    }

    fn spawn(&mut self, name: &OsStr, work: impl Future<Output = Came> + Send + 'static) {
        if let Some(job) = self.running.get_mut(name) {
            job.task = Some(self.tasks.spawn(work));
        }
    }

    /// The next thing a job came back with, and whose it is; `None` for one that was dropped. Waits for ever while
    /// nothing runs. Safe to cancel.
    pub(super) async fn next(&mut self) -> (OsString, Option<Came>) {
        match self.tasks.join_next_with_id().await {
            None => std::future::pending().await,
            Some(Ok((id, came))) => (self.name_of(id), Some(came)),
            Some(Err(error)) => (self.name_of(error.id()), dropped(error)),
        }
    }

    fn name_of(&self, id: Id) -> OsString {
        let is_of = |job: &Job| job.task.as_ref().is_some_and(|task| task.id() == id);
        let found = self.running.iter().find(|(_, job)| is_of(job));
        found
            .map(|(name, _)| name.clone())
            .expect("a job stays in the list until its task is joined")
    }

    /// Lets a bundle wait whose catalog was read.
    pub(super) fn wait(&mut self, name: &OsStr, read: Box<Read>) {
        if let Some(job) = self.running.get_mut(name) {
            job.records.clone_from(&read.records);
            job.stage = Stage::Waiting(read);
        }
    }

    /// A bundle that waits and need not any more: nobody who is importing wants one of its names for something else.
    /// Those that wait are gone through in the order of `arrival`.
    pub(super) fn unblocked(&mut self, arrival: impl Fn(&OsStr) -> u64) -> Option<(OsString, Box<Read>)> {
        let importing = |job: &&Job| matches!(job.stage, Stage::Importing(_));
        let importing: Vec<&Job> = self.running.values().filter(importing).collect();
        let is_free = |job: &Job| {
            importing
                .iter()
                .all(|other| !disagree(&job.records, &other.records))
        };
        let waiting = self
            .running
            .iter()
            .filter(|(_, job)| matches!(job.stage, Stage::Waiting(_)) && is_free(job));
        let name = waiting
            .map(|(name, _)| name)
            .min_by_key(|name| arrival(name))?
            .clone();
        let job = self.running.get_mut(&name)?;
        match std::mem::replace(&mut job.stage, Stage::Opening) {
            Stage::Waiting(read) => Some((name, read)),
            stage => {
                job.stage = stage;
                None
            }
        }
    }

    pub(super) fn get(&self, name: &OsStr) -> Option<&Job> {
        self.running.get(name)
    }

    pub(super) fn get_mut(&mut self, name: &OsStr) -> Option<&mut Job> {
        self.running.get_mut(name)
    }

    /// Takes a job off the list that has come to its end.
    pub(super) fn end(&mut self, name: &OsStr) -> Option<Job> {
        self.behind.retain(|_, other| other != name);
        let job = self.running.remove(name)?;
        if !job.has_yielded {
            self.yields.remove(name);
        }
        Some(job)
    }

    /// Drops the jobs that `is_outdated` names. The blobs that they have moved stay under their leases. A job that
    /// waits is over at once. Returns true if a record changed meanwhile that such a job would have written.
    pub(super) fn drop_if(&mut self, is_outdated: impl Fn(&Job) -> bool) -> bool {
        for job in self.running.values_mut().filter(|job| is_outdated(job)) {
            job.is_outdated = true;
            job.task.iter().for_each(AbortHandle::abort);
        }
        self.end_waiting(|job| job.is_outdated)
    }

    /// Drops the jobs that wait for another one.
    pub(super) fn drop_waiting(&mut self) {
        self.end_waiting(|_| true);
    }

    fn end_waiting(&mut self, is_over: impl Fn(&Job) -> bool) -> bool {
        let waiting = self.running.values();
        let over = waiting.filter(|job| matches!(job.stage, Stage::Waiting(_)) && is_over(job));
        let over: Vec<OsString> = over.map(|job| job.order.name.clone()).collect();
        let ended: Vec<Job> = over.iter().filter_map(|name| self.end(name)).collect();
        ended.iter().any(|job| job.disturbed)
    }

    /// The jobs.
    pub(super) fn all(&self) -> impl Iterator<Item = &Job> {
        self.running.values()
    }

    /// The job that writes this record, if one does.
    pub(super) fn writer_of(&mut self, record: &str) -> Option<&mut Job> {
        self.running
            .values_mut()
            .find(|job| job.records.contains_key(record))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.running.is_empty()
    }
}

/// How long an import keeps its lane although nothing of it moves, which has given it to others so many times before: twice
/// as long each time. The work that a job is interrupted in (a layer that is unpacked) begins anew, so that two jobs would
/// otherwise interrupt each other for ever.
fn patience(yields: u32) -> Duration {
    STILL * (1 << yields.min(6))
}

/// Whether two bundles want a name for different images.
fn disagree(one: &BTreeMap<String, Digest>, other: &BTreeMap<String, Digest>) -> bool {
    let is_disputed = |(name, target)| other.get(name).is_some_and(|wanted| wanted != target);
    one.iter().any(is_disputed)
}

/// Gives the reason of a job that panicked, and nothing for a job that was dropped.
fn dropped(error: JoinError) -> Option<Came> {
    let panic = error.try_into_panic().ok()?;
    Some(Came::Panicked(crash::panic_text(&*panic)))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use bundle::fixtures::{Image, Layout};
    use fake_containerd::{Fake, FakeConfig};

    use super::super::job::joined;
    use super::*;
    use crate::runtime;
    use crate::settings::Settings;
    use crate::state::roster::Version;

    const IDENTITY: Identity = Identity {
        device: 1,
        inode: 2,
        size: 1 << 30,
        mtime_ns: 3,
        ctime_ns: 4,
    };

    /// Jobs that never come back by themselves.
    struct Scene {
        fake: Fake,
        folder: tempfile::TempDir,
        jobs: Jobs,
    }

    impl Scene {
        async fn set() -> Scene {
            Scene {
                fake: Fake::start(FakeConfig::default()).await,
                folder: tempfile::tempdir().unwrap(),
                jobs: Jobs::default(),
            }
        }

        async fn begin(&mut self, name: &str, lane: Lane) {
            let settings = Settings::default();
            let Ok(runtime) = runtime::connect(self.fake.socket(), &settings).await else {
                panic!("the stand-in does not answer")
            };
            let order = Order {
                name: name.into(),
                version: Version {
                    identity: IDENTITY,
                    sidecar: None,
                    is_layout: false,
                },
                images_dir: PathBuf::new(),
                policy: runtime::policy(&settings, Some(&runtime)),
                settings: Arc::new(settings),
                runtime,
                started: Instant::now(),
                is_told: false,
                is_beside_another: false,
            };
            self.jobs.start(Arc::new(order), lane, std::future::pending());
        }

        fn bundle(&self) -> Arc<bundle::Bundle> {
            let path = self.folder.path().join("a.tar");
            let image = Image::new("registry.test/a:1");
            Layout::new().image(image).build().write_to(&path);
            let bundle = bundle::Bundle::open(&path, &bundle::Limits::default());
            Arc::new(bundle.expect("it is a bundle"))
        }

        fn import(&mut self, name: &str) {
            let stage = Stage::Importing(self.bundle());
            self.jobs.go_on(name.as_ref(), stage, std::future::pending());
        }

        fn wait(&mut self, name: &str) {
            let read = Read {
                bundle: self.bundle(),
                records: BTreeMap::new(),
                broken: None,
            };
            self.jobs.wait(name.as_ref(), Box::new(read));
        }

        fn idle_before(&self, name: &str, is_alone: bool, now: Instant) -> Option<&OsStr> {
            let load = Load {
                name: name.as_ref(),
                identity: &IDENTITY,
                size: IDENTITY.size,
                is_repair: false,
                is_alone,
            };
            let job = self.jobs.idle_before(load, now);
            job.map(|job| job.order.name.as_os_str())
        }
    }

    #[tokio::test]
    async fn a_file_that_has_to_be_alone_has_the_only_job_give_way_once_nothing_of_it_moves() {
        let mut scene = Scene::set().await;
        let now = Instant::now();
        let late = now + STILL + Duration::from_secs(60);
        for is_alone in [true, false] {
            assert_eq!(scene.idle_before("next.tar", is_alone, late), None);
        }
        scene.begin("one.tar", Lane::Main).await;
        assert_eq!(scene.idle_before("next.tar", true, late), None, "it is read");
        scene.import("one.tar");
        for is_alone in [true, false] {
            assert_eq!(scene.idle_before("next.tar", is_alone, now), None);
            let idle = scene.idle_before("next.tar", is_alone, late);
            assert_eq!(idle, Some(OsStr::new("one.tar")));
            assert_eq!(scene.idle_before("one.tar", is_alone, late), None);
        }
        scene.begin("two.tar", Lane::Light).await;
        assert_eq!(scene.idle_before("next.tar", true, late), None, "there are two");
        assert!(scene.idle_before("next.tar", false, late).is_some());
    }

    #[tokio::test]
    async fn an_import_that_was_interrupted_keeps_its_lane_twice_as_long_the_next_time() {
        let mut scene = Scene::set().await;
        for times in [1, 2, 4, 8] {
            scene.begin("a.tar", Lane::Main).await;
            scene.import("a.tar");
            let begun = scene.jobs.get("a.tar".as_ref()).unwrap().stillness.since;
            let patience = STILL * times;
            let before = begun + patience.saturating_sub(Duration::from_secs(1));
            assert_eq!(scene.idle_before("b.tar", false, before), None, "{times}");
            assert!(
                scene.idle_before("b.tar", false, begun + patience).is_some(),
                "{times}"
            );
            assert!(scene.jobs.give_way("a.tar".as_ref()).is_none());
            scene.jobs.end("a.tar".as_ref());
        }
        scene.begin("a.tar", Lane::Main).await;
        scene.import("a.tar");
        scene.jobs.end("a.tar".as_ref());
        scene.begin("a.tar", Lane::Main).await;
        assert_eq!(scene.jobs.get("a.tar".as_ref()).unwrap().patience, STILL);
        assert!(patience(u32::MAX) > patience(5));
    }

    #[tokio::test]
    async fn a_job_that_waits_and_is_dropped_frees_what_is_behind_it_and_tells_of_its_news() {
        for is_disturbed in [true, false] {
            let mut scene = Scene::set().await;
            scene.begin("one.tar", Lane::Main).await;
            scene.begin("two.tar", Lane::Light).await;
            scene.import("one.tar");
            scene.jobs.give_way("one.tar".as_ref());
            scene.jobs.end("one.tar".as_ref());
            assert!(scene.jobs.is_behind("one.tar".as_ref()));
            scene.wait("two.tar");
            scene.jobs.get_mut("two.tar".as_ref()).unwrap().disturbed = is_disturbed;
            assert_eq!(scene.jobs.drop_if(|_| true), is_disturbed);
            assert!(scene.jobs.is_empty());
            assert!(!scene.jobs.is_behind("one.tar".as_ref()));
        }
    }

    #[tokio::test]
    async fn a_job_that_panics_comes_back_with_why_and_one_that_is_dropped_with_nothing() {
        let mut tasks: JoinSet<()> = JoinSet::new();
        tasks.spawn(async {
            let read = tokio::task::spawn_blocking(|| panic!("the 7th entry\nis odd"));
            joined::<()>(read.await);
        });
        let Some(Came::Panicked(text)) = dropped(tasks.join_next().await.unwrap().unwrap_err()) else {
            panic!("another end")
        };
        assert!(
            text.starts_with("a panic: the 7th entry") && !text.contains('\n'),
            "{text}"
        );
        tasks.spawn(std::future::pending()).abort();
        assert!(dropped(tasks.join_next().await.unwrap().unwrap_err()).is_none());
    }

    #[test]
    fn a_job_is_still_while_neither_its_bytes_nor_its_images_get_more() {
        let begin = Instant::now();
        let at = |seconds: u64| begin + Duration::from_secs(seconds);
        let table: [(u64, Mark, u64); 6] = [
            (10, (0, 0), 0),
            (20, (1, 0), 20),
            (30, (1, 0), 20),
            (40, (1, 1), 40),
            (50, (2, 1), 50),
            (400, (2, 1), 50),
        ];
        let mut stillness = Stillness::begins(begin);
        for (now, mark, since) in table {
            stillness.note(mark, at(now));
            assert_eq!(stillness.since, at(since), "{mark:?} after {now} s");
        }
    }
}
