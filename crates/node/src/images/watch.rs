//! Reports that the images folders may have changed.
//!
//! An event is only a hint to list the folder again. So a [`Watch`] reports neither names nor
//! kinds, and has no queue that could fill. A lost event, an overflow of the kernel's queue and an
//! error therefore all have the same effect. A flood of events costs no memory.
//!
//! inotify watches an inode and not a path, and does not report a mount over it. So the watch
//! includes the nearest folder above, and it polls the mount table. A timer compares the folder at
//! the path with the watched folder. The timer also covers file systems without events.
//!
//! More than half of the file is its tests. They place files in every way and look at the watch
//! from outside, so they stay beside its internals.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::event::{CreateKind, Event, EventKind, EventKindMask, RemoveKind};
use notify::{ErrorKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::sys;

/// Time between two listings when nothing has happened.
const RESCAN: Duration = Duration::from_secs(30);
/// Time between two listings if the kernel allows no watch (its limits are reached).
const RESCAN_BLIND: Duration = Duration::from_secs(5);
/// Shortest time between two hints. The first hint after a quiet time comes at once.
const PACE: Duration = Duration::from_millis(20);
/// Shortest time between two hints, as a multiple of the time that a listing takes. Ten thousand
/// new files then do not mean ten thousand listings of ten thousand files.
const SHARE: u32 = 10;
/// Longest pause between a listing and the next hint.
const LONGEST: Duration = Duration::from_secs(1);

/// Returns all kinds of events except MODIFY and OPEN. MODIFY comes with every write(2) and floods
/// the kernel's queue. OPEN comes with every look of the daemon itself.
fn wanted_events() -> EventKindMask {
    EventKindMask::CREATE
        | EventKindMask::REMOVE
        | EventKindMask::MODIFY_META
        | EventKindMask::MODIFY_NAME
        | EventKindMask::ACCESS_CLOSE
}

/// Checks that the kernel allows a watch on each folder, or on the nearest existing folder above.
/// Takes the watches and drops them at once.
///
/// # Errors
///
/// Returns the reason why the kernel refuses a watch, such as a limit that is reached. The
/// daemon then lists the folder every few seconds instead.
pub fn try_watch(folders: &[PathBuf]) -> Result<(), String> {
    let text = |error: notify::Error| error.to_string();
    let mut watcher = notify::recommended_watcher(|_| {}).map_err(text)?;
    for folder in folders {
        let there = folder.ancestors().find(|folder| folder.is_dir());
        let there = there.unwrap_or(Path::new("/"));
        watcher.watch(there, RecursiveMode::NonRecursive).map_err(text)?;
    }
    Ok(())
}

/// A watch on folders that may appear and disappear. The watch ends when it is dropped. All folders
/// share one instance of inotify.
#[derive(Debug)]
pub(crate) struct Watch {
    hint: Arc<Notify>,
    earliest: Instant,
    /// Folders below the folders: relative to the first one, or whole paths.
    below: watch::Sender<Vec<PathBuf>>,
    keeper: JoinHandle<()>,
}

impl Watch {
    /// Starts to watch. The folders need not exist. Changes after this call lead to a hint. Must be
    /// called inside a tokio runtime.
    ///
    /// # Errors
    ///
    /// Returns an error if a folder is relative and the working directory is gone. If the kernel
    /// allows no watch, the daemon lists the folders every few seconds instead, with a warning.
    pub(crate) fn start(folders: &[PathBuf]) -> io::Result<Watch> {
        let hint = Arc::new(Notify::new());
        let folders: io::Result<Vec<_>> = folders.iter().map(std::path::absolute).collect();
        let mut ground = Ground::new(folders?, Arc::clone(&hint));
        ground.establish();
        let (below, wanted) = watch::channel(Vec::new());
        let keeper = tokio::spawn(ground.keep(wanted));
        Ok(Watch {
            hint,
            earliest: Instant::now(),
            below,
            keeper,
        })
    }

    /// Also watches these folders below the folders, and no others. A relative path begins at the
    /// first folder. Must be called after each listing. If one of them is new or was replaced, a
    /// hint follows, because its content may have changed before.
    pub(crate) fn also(&self, below: Vec<PathBuf>) {
        self.below.send_replace(below);
    }

    /// Notes the time that a listing took. The next hint comes later after a long one.
    pub(crate) fn listed(&mut self, took: Duration) {
        let pause = took.saturating_mul(SHARE).min(LONGEST);
        self.earliest = self.earliest.max(Instant::now() + pause);
    }

    /// Waits until a folder may have changed since the last call. Safe to cancel: no hint is
    /// lost.
    pub(crate) async fn changed(&mut self) {
        // A timer that is over would still wake the runtime.
        if self.earliest > Instant::now() {
            tokio::time::sleep_until(self.earliest).await;
        }
        self.hint.notified().await;
        self.earliest = Instant::now() + PACE;
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

/// Device and inode of the folder at a path.
type Place = (u64, u64);

fn place(path: &Path) -> Option<Place> {
    let metadata = std::fs::metadata(path).ok()?;
    metadata.is_dir().then(|| (metadata.dev(), metadata.ino()))
}

/// The folders that are watched, and the wanted folders.
struct Ground {
    folders: Vec<PathBuf>,
    hint: Arc<Notify>,
    /// Notified if the ground itself may have moved: an event about the folder and not in it.
    moved: Arc<Notify>,
    watcher: Option<RecommendedWatcher>,
    /// Folders below the folders to watch, too, see [`Watch::also`].
    below: Vec<PathBuf>,
    /// The folders that are watched now: each folder that exists, the folders below, and the
    /// nearest folder above each folder.
    watched: Vec<(PathBuf, Place)>,
    /// The reason why there is no watch, once it was logged.
    blind: Option<String>,
}

impl Ground {
    fn new(folders: Vec<PathBuf>, hint: Arc<Notify>) -> Ground {
        let moved = Arc::new(Notify::new());
        Ground {
            folders,
            hint,
            moved,
            watcher: None,
            below: Vec::new(),
            watched: Vec::new(),
            blind: None,
        }
    }

    /// Keeps the watch on the path until it is dropped.
    async fn keep(mut self, mut wanted: watch::Receiver<Vec<PathBuf>>) {
        let mounts = Mounts::open();
        let moved = Arc::clone(&self.moved);
        loop {
            let rescan = if self.blind.is_some() {
                RESCAN_BLIND
            } else {
                RESCAN
            };
            tokio::select! {
                () = moved.notified() => self.establish(),
                () = mounts.changed() => self.check(),
                Ok(()) = wanted.changed() => {
                    self.below.clone_from(&wanted.borrow_and_update());
                    // Without a watch, every listing would request the next.
                    if self.blind.is_none() {
                        self.check();
                    }
                }
                () = tokio::time::sleep(rescan) => {
                    self.check();
                    self.hint.notify_one();
                }
            }
        }
    }

    /// Renews the watch if the path leads to another folder by now.
    fn check(&mut self) {
        if self.blind.is_some() || self.watched != self.wanted() {
            self.establish();
        }
    }

    /// Returns the current folders to watch.
    fn wanted(&self) -> Vec<(PathBuf, Place)> {
        let nearest = |folder: &PathBuf| {
            let mut above = folder.ancestors().skip(1);
            above.find_map(|path| Some((path.to_owned(), place(path)?)))
        };
        let first = self
            .folders
            .first()
            .map(PathBuf::as_path)
            .unwrap_or(Path::new("/"));
        let below = self.below.iter().map(|path| first.join(path));
        let there = self.folders.iter().cloned().chain(below);
        let there = there.filter_map(|path| place(&path).map(|place| (path, place)));
        let mut wanted: Vec<_> = there.collect();
        for above in self.folders.iter().filter_map(nearest) {
            // Folders may have the same folder above. A path has one watch.
            if !wanted.contains(&above) {
                wanted.push(above);
            }
        }
        wanted
    }

    /// Watches the current folders at the paths, and hints, because anything may have happened
    /// before.
    fn establish(&mut self) {
        // The ground may move again between the look and the watch. The kernel reports only later
        // moves.
        for _ in 0..3 {
            let wanted = self.wanted();
            self.watch(&wanted);
            if wanted == self.wanted() {
                break;
            }
        }
        self.hint.notify_one();
    }

    fn watch(&mut self, wanted: &[(PathBuf, Place)]) {
        let mut failure = None;
        match self.watcher() {
            Ok(mut watcher) => {
                // Always renew each watch: a watch of the same path may be on an inode that has
                // moved.
                for (path, _) in &self.watched {
                    let _ = watcher.unwatch(path);
                }
                for (path, _) in wanted {
                    match watcher.watch(path, RecursiveMode::NonRecursive) {
                        Err(error) if !matches!(error.kind, ErrorKind::PathNotFound) => {
                            failure = Some(format!("{}: {}", path.display(), describe(&error)));
                        }
                        Ok(()) | Err(_) => {}
                    }
                }
                self.watcher = Some(watcher);
            }
            Err(error) => failure = Some(describe(&error)),
        }
        self.watched = wanted.to_vec();
        self.tell(failure);
    }

    /// Returns the current watcher, or a new one if its thread has died.
    fn watcher(&mut self) -> notify::Result<RecommendedWatcher> {
        if let Some(watcher) = self.watcher.take() {
            if watcher.watched_paths().is_ok() {
                return Ok(watcher);
            }
            // Dropping it would panic, since the thread that it wants to stop is gone.
            std::mem::forget(watcher);
        }
        let (folders, hint, moved) = (
            self.folders.clone(),
            Arc::clone(&self.hint),
            Arc::clone(&self.moved),
        );
        let config = notify::Config::default().with_event_kinds(wanted_events());
        let on_event = move |event: notify::Result<Event>| match concerns(&folders, &event) {
            Concern::Nothing => {}
            Concern::Content => hint.notify_one(),
            Concern::Ground => {
                moved.notify_one();
                hint.notify_one();
            }
        };
        RecommendedWatcher::new(on_event, config)
    }

    fn tell(&mut self, failure: Option<String>) {
        match (&failure, &self.blind) {
            (Some(why), None) => {
                warn!(
                    "cannot watch the images folder ({why}): the daemon lists it every {RESCAN_BLIND:?} instead"
                );
            }
            (None, Some(_)) => info!("the images folder is watched again"),
            (Some(_), Some(_)) | (None, None) => {}
        }
        self.blind = failure;
    }
}

fn describe(error: &notify::Error) -> String {
    match &error.kind {
        ErrorKind::MaxFilesWatch => "the kernel's limit fs.inotify.max_user_watches is reached".to_owned(),
        ErrorKind::Io(error) if error.raw_os_error() == Some(libc::EMFILE) => {
            "the kernel's limit fs.inotify.max_user_instances, or that of open files, is reached".to_owned()
        }
        _ => error.to_string(),
    }
}

/// The subject of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Concern {
    /// Something outside the folders.
    Nothing,
    /// Something in a folder.
    Content,
    /// A folder itself, a folder above it, or an unknown subject.
    Ground,
}

fn concerns(folders: &[PathBuf], event: &notify::Result<Event>) -> Concern {
    let Ok(event) = event else { return Concern::Ground };
    if event.need_rescan() || event.paths.is_empty() {
        return Concern::Ground;
    }
    let of_a_folder = matches!(
        event.kind,
        EventKind::Create(CreateKind::Folder) | EventKind::Remove(RemoveKind::Folder)
    );
    let concern = |path: &PathBuf, folder: &PathBuf| match () {
        () if folder.starts_with(path) => Concern::Ground,
        // A folder below that was created again may have the inode of the old folder, and yet not
        // be watched.
        () if of_a_folder && path.starts_with(folder) => Concern::Ground,
        () if path.starts_with(folder) => Concern::Content,
        () => Concern::Nothing,
    };
    let of_path = |path| folders.iter().map(move |folder| concern(path, folder));
    let concerns: Vec<_> = event.paths.iter().flat_map(of_path).collect();
    let first = [Concern::Ground, Concern::Content]
        .into_iter()
        .find(|concern| concerns.contains(concern));
    first.unwrap_or(Concern::Nothing)
}

/// The mount table of this process, which becomes "urgent" when it changes (proc(5), mountinfo).
struct Mounts(Option<AsyncFd<OwnedFd>>);

impl Mounts {
    fn open() -> Mounts {
        let file = std::fs::File::open("/proc/self/mountinfo").ok();
        Mounts(file.and_then(|file| sys::watch_events(file.into(), Interest::PRIORITY).ok()))
    }

    /// Waits for a change, forever if /proc does not report it. The timer then finds the change.
    async fn changed(&self) {
        if let Some(file) = &self.0
            && let Ok(mut ready) = file.ready(Interest::PRIORITY).await
        {
            ready.clear_ready();
            return;
        }
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use notify::event::Flag;

    use super::*;

    /// Longest wait for a hint: far longer than a hint takes, and far shorter than the timer that
    /// would hide a lost event.
    const SOON: Duration = Duration::from_secs(10);

    struct Trial {
        _temporary: tempfile::TempDir,
        folder: PathBuf,
        watch: Watch,
    }

    impl Trial {
        /// Starts a watch on `data/images`, of which this part exists.
        async fn start(existing: &str) -> Trial {
            Trial::start_with(existing, &[]).await
        }

        /// Starts a watch on `data/images`, of which this part exists, and on more folders.
        async fn start_with(existing: &str, more: &[&str]) -> Trial {
            let temporary = tempfile::tempdir().unwrap();
            fs::create_dir_all(temporary.path().join(existing)).unwrap();
            let folder = temporary.path().join("data/images");
            let more = more.iter().map(|more| temporary.path().join(more));
            let folders: Vec<PathBuf> = std::iter::once(folder.clone()).chain(more).collect();
            let watch = Watch::start(&folders).unwrap();
            let mut trial = Trial {
                _temporary: temporary,
                folder,
                watch,
            };
            trial.quiet().await;
            trial
        }

        fn data(&self) -> PathBuf {
            self.folder.parent().unwrap().to_owned()
        }

        async fn hinted(&mut self, what: &str) {
            let changed = tokio::time::timeout(SOON, self.watch.changed()).await;
            changed.unwrap_or_else(|_| panic!("no hint after: {what}"));
        }

        /// Takes hints until none has come for a while.
        async fn quiet(&mut self) {
            while tokio::time::timeout(4 * PACE, self.watch.changed()).await.is_ok() {}
        }

        /// Runs a deed and expects a hint, after it has taken all hints of earlier deeds.
        async fn expect(&mut self, what: &str, deed: impl FnOnce(&Path) -> io::Result<()>) {
            self.quiet().await;
            deed(&self.folder).unwrap();
            self.hinted(what).await;
        }

        /// Expects that the current folder is watched.
        async fn expect_watched(&mut self) {
            self.expect("a file was written", |folder| {
                fs::write(folder.join("probe"), "x")
            })
            .await;
        }
    }

    #[tokio::test]
    async fn every_way_of_placing_and_removing_a_file_gives_a_hint() {
        let mut trial = Trial::start("data/images").await;
        let outside = trial.data().join("outside");
        fs::write(&outside, "x").unwrap();
        trial
            .expect("create and write", |folder| fs::write(folder.join("a"), "x"))
            .await;
        trial
            .expect("rewrite in place", |folder| fs::write(folder.join("a"), "y"))
            .await;
        trial
            .expect("hard link", |folder| fs::hard_link(&outside, folder.join("b")))
            .await;
        trial
            .expect("rename in", |folder| fs::rename(&outside, folder.join("c")))
            .await;
        trial
            .expect("symlink", |f| std::os::unix::fs::symlink("c", f.join("d")))
            .await;
        trial
            .expect("rename inside", |folder| {
                fs::rename(folder.join("c"), folder.join("e"))
            })
            .await;
        trial
            .expect("rename out", |folder| fs::rename(folder.join("e"), &outside))
            .await;
        trial
            .expect("delete", |folder| fs::remove_file(folder.join("a")))
            .await;
    }

    #[tokio::test]
    async fn our_own_reading_and_listing_give_no_hint() {
        let mut trial = Trial::start("data/images").await;
        fs::write(trial.folder.join("a"), "x").unwrap();
        trial.quiet().await;
        fs::read(trial.folder.join("a")).unwrap();
        assert_eq!(fs::read_dir(&trial.folder).unwrap().count(), 1);
        let hint = tokio::time::timeout(4 * PACE, trial.watch.changed()).await;
        assert!(hint.is_err());
    }

    #[tokio::test]
    async fn a_folder_that_appears_late_is_watched_from_then_on() {
        for existing in ["data", "", "elsewhere"] {
            let mut trial = Trial::start(existing).await;
            trial
                .expect("the folder was made", |folder| fs::create_dir_all(folder))
                .await;
            trial.expect_watched().await;
        }
    }

    #[tokio::test]
    async fn every_further_folder_is_watched_when_it_is_there_and_when_it_comes() {
        let mut trial = Trial::start_with("data/images", &["data/two", "os/three"]).await;
        let root = trial.data().parent().unwrap().to_owned();
        for folder in ["data/two", "os/three"].map(|folder| root.join(folder)) {
            trial
                .expect("the folder was made", |_| fs::create_dir_all(&folder))
                .await;
            trial
                .expect("a file was written", |_| fs::write(folder.join("a"), "x"))
                .await;
            fs::create_dir(folder.join("sub")).unwrap();
            trial.watch.also(vec![folder.join("sub")]);
            trial
                .expect("a file in a folder below", |_| {
                    fs::write(folder.join("sub/a"), "x")
                })
                .await;
            trial.expect_watched().await;
        }
    }

    #[tokio::test]
    async fn a_folder_that_is_removed_and_made_again_is_watched_again() {
        let mut trial = Trial::start("data/images").await;
        for _ in 0..3 {
            trial.expect("removal", |folder| fs::remove_dir_all(folder)).await;
            trial.expect("recreation", |folder| fs::create_dir(folder)).await;
            trial.expect_watched().await;
        }
    }

    #[tokio::test]
    async fn a_folder_that_is_swapped_for_another_is_watched_and_the_old_one_is_not() {
        let mut trial = Trial::start("data/images").await;
        let (next, old) = (trial.data().join("next"), trial.data().join("old"));
        fs::create_dir(&next).unwrap();
        trial
            .expect("swap", |folder| {
                fs::rename(folder, &old)?;
                fs::rename(&next, folder)
            })
            .await;
        trial.expect_watched().await;
        trial.quiet().await;
        fs::write(old.join("x"), "x").unwrap();
        assert!(
            tokio::time::timeout(4 * PACE, trial.watch.changed())
                .await
                .is_err()
        );
    }

    #[tokio::test]
    async fn folders_below_are_watched_when_asked_and_again_when_they_are_made_anew() {
        let mut trial = Trial::start("data/images/sub").await;
        trial.watch.also(vec!["sub".into()]);
        for _ in 0..2 {
            trial
                .expect("a file in the folder below", |folder| {
                    fs::write(folder.join("sub/a"), "x")
                })
                .await;
            trial
                .expect("made anew", |folder| {
                    fs::remove_dir_all(folder.join("sub"))?;
                    fs::create_dir(folder.join("sub"))
                })
                .await;
            trial.watch.also(vec!["sub".into()]);
        }
        trial.watch.also(Vec::new());
        trial.quiet().await;
        fs::write(trial.folder.join("sub/b"), "x").unwrap();
        let hint = tokio::time::timeout(4 * PACE, trial.watch.changed()).await;
        assert!(hint.is_err(), "it is no longer watched");
    }

    #[tokio::test]
    async fn a_parent_that_is_removed_with_the_folder_is_watched_when_it_returns() {
        let mut trial = Trial::start("data/images").await;
        let data = trial.data();
        trial
            .expect("removal of both", |_| fs::remove_dir_all(&data))
            .await;
        trial
            .expect("recreation of both", |folder| fs::create_dir_all(folder))
            .await;
        trial.expect_watched().await;
    }

    #[tokio::test]
    async fn a_symlinked_folder_is_watched_at_its_target_and_after_the_link_is_switched() {
        let mut trial = Trial::start("data/one").await;
        let data = trial.data();
        fs::create_dir(data.join("two")).unwrap();
        let link = |target: &str, folder: &Path| {
            let new = data.join("new-link");
            std::os::unix::fs::symlink(target, &new)?;
            fs::rename(&new, folder)
        };
        trial.expect("link", |folder| link("one", folder)).await;
        trial.expect_watched().await;
        trial.expect("switched link", |folder| link("two", folder)).await;
        trial
            .expect("a file in the new target", |_| fs::write(data.join("two/x"), "x"))
            .await;
    }

    #[tokio::test]
    async fn a_flood_of_events_ends_in_a_hint_after_the_last_of_them() {
        let mut trial = Trial::start("data/images").await;
        let folder = trial.folder.clone();
        let (a, b) = (folder.join("a"), folder.join("b"));
        fs::write(&a, "x").unwrap();
        // The runtime has one thread here, so no hint is taken before all this has happened.
        for _ in 0..5_000 {
            fs::rename(&a, &b).unwrap();
            fs::rename(&b, &a).unwrap();
        }
        trial.hinted("10,000 renames, 20,000 events").await;
        trial.expect_watched().await;
    }

    /// Runs in a separate mount namespace, so no mount is left behind.
    #[tokio::test]
    #[ignore = "the next test runs it where it may mount"]
    async fn mounting() {
        let mut trial = Trial::start("data/images").await;
        let call = |program: &str, arguments: &[&str], folder: &Path| {
            let status = std::process::Command::new(program)
                .args(arguments)
                .arg(folder)
                .status()?;
            status
                .success()
                .then_some(())
                .ok_or_else(|| io::Error::other(program.to_owned()))
        };
        trial
            .expect("mount over the folder", |folder| {
                call("mount", &["-t", "tmpfs", "tmpfs"], folder)
            })
            .await;
        trial.expect_watched().await;
        trial
            .expect("unmount", |folder| call("umount", &[], folder))
            .await;
        trial.expect_watched().await;
    }

    #[test]
    fn something_mounted_over_the_folder_is_noticed() {
        if !rustix::process::geteuid().is_root() {
            return; // mount(2) is root's
        }
        let test = std::env::current_exe().unwrap();
        let arguments = ["--exact", "images::watch::tests::mounting", "--ignored"];
        let mut program = std::process::Command::new("unshare");
        program
            .arg("--mount")
            .arg(test)
            .args(arguments)
            .stdout(std::process::Stdio::piped());
        let output = crate::sys::forks::spawn(&mut program).wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("1 passed"), "{said}");
    }

    #[test]
    fn lost_events_and_errors_count_as_moved_ground() {
        let folders = ["/data/images", "/usr/share/images"].map(PathBuf::from);
        let event = |path: &str| Ok(Event::new(EventKind::Create(CreateKind::Any)).add_path(path.into()));
        let folder_event =
            |path: &str| Ok(Event::new(EventKind::Create(CreateKind::Folder)).add_path(path.into()));
        let table = [
            ("in the folder", event("/data/images/a"), Concern::Content),
            (
                "a folder made below",
                folder_event("/data/images/a"),
                Concern::Ground,
            ),
            ("a folder made beside", folder_event("/data/a"), Concern::Nothing),
            ("the folder", event("/data/images"), Concern::Ground),
            ("above", event("/data"), Concern::Ground),
            ("beside", event("/data/bin"), Concern::Nothing),
            ("a similar name", event("/data/images2"), Concern::Nothing),
            (
                "overflow",
                Ok(Event::new(EventKind::Other).set_flag(Flag::Rescan)),
                Concern::Ground,
            ),
            (
                "in the second folder",
                event("/usr/share/images/a"),
                Concern::Content,
            ),
            ("above the second folder", event("/usr"), Concern::Ground),
            ("an error", Err(notify::Error::generic("x")), Concern::Ground),
        ];
        for (case, event, expected) in table {
            assert_eq!(concerns(&folders, &event), expected, "{case}");
        }
    }

    #[tokio::test]
    async fn a_change_during_a_cancelled_wait_is_not_lost() {
        let mut trial = Trial::start("data/images").await;
        fs::write(trial.folder.join("a"), "x").unwrap();
        // The hint stays until it is taken, however many waits are cancelled.
        let mut taken = false;
        for _ in 0..1000 {
            taken |= tokio::time::timeout(Duration::ZERO, trial.watch.changed())
                .await
                .is_ok();
            tokio::task::yield_now().await;
        }
        if !taken {
            trial.hinted("a write before cancelled waits").await;
        }
    }
}
