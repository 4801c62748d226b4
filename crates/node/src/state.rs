//! Everything that the daemon knows. Only the decisions in `decide` change it.

pub mod admitted;
mod carried;
pub(crate) mod crash;
mod entry;
pub mod ledger;
pub mod roster;
mod store;
mod suspects;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::OsString;
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use crate::decide::compare::Connection;
use crate::decide::follow::Following;
use crate::decide::healing::Healing;
use crate::decide::lanes::Lanes;
use crate::decide::line::Rows;
use crate::decide::link::Link;
use crate::decide::listing::{FolderState, KeysSeen, TrustStamp};
use crate::decide::receipts::ReceiptsState;
use crate::decide::require::RequiredState;
use crate::decide::room::RoomState;
use crate::decide::unpack::UnpackState;
use crate::place::Distribution;
use crate::settings::Settings;
use crate::state::ledger::Ledger;
use crate::state::roster::Roster;

/// Makes the state folder, which only its owner may enter. A folder that exists stays as it is.
///
/// # Errors
///
/// Returns the error of the operating system.
pub fn make_folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Everything that the daemon knows and decides by.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) settings: Arc<Settings>,
    /// The first images folder, where operators place their bundles.
    pub(crate) images_dir: PathBuf,
    /// The imported images, for this run and the next ones.
    pub(crate) ledger: Ledger,
    /// True if the ledger has news that can wait until no job runs.
    pub(crate) unsaved: bool,
    /// The files of all folders and the phase of each.
    pub(crate) roster: Roster,
    /// True if the folders have to be listed again.
    pub(crate) relist: bool,
    /// The images folders in their order. Then come folders of bundles in the ledger that are no
    /// images folders any more.
    pub(crate) folders: Vec<FolderState>,
    /// The trusted digests at the last comparison with the bundles.
    pub(crate) trusted: Option<TrustStamp>,
    /// The keys and revocations, if signatures are asked for.
    pub(crate) keys: Option<KeysSeen>,
    /// The jobs.
    pub(crate) lanes: Lanes,
    pub(crate) connection: Connection,
    /// Time of the next attempt to connect, and which news about it to log.
    pub(crate) link: Link,
    /// The consecutive restorations of each bundle, which delay the next one.
    pub(crate) healing: Healing,
    /// Bundles that wait for another importer.
    pub(crate) following: Following,
    /// containerd's disk.
    pub(crate) room: RoomState,
    /// The images that the configuration requires.
    pub(crate) required: RequiredState,
    /// The files that receipts stand for, or are to stand for.
    pub(crate) receipts: ReceiptsState,
    /// Images that are unpacked ahead.
    pub(crate) unpack: UnpackState,
    /// Records that other programs moved, and their new targets, as far as the log has them.
    pub(crate) moved: HashSet<(String, String)>,
    /// Names of moved records by bundle, as of the last comparison.
    pub(crate) elsewhere: HashMap<OsString, BTreeSet<String>>,
    /// Bundles that were imported with other images than before, until a comparison has judged
    /// their labels.
    pub(crate) reworded: HashSet<OsString>,
    /// Bundles whose jobs were dropped. Their leases remain for the next job.
    pub(crate) abandoned: HashSet<OsString>,
    /// Limits on the log lines of each kind.
    pub(crate) rows: Rows,
    /// The boot id of this machine. `None` if the kernel does not tell it.
    pub(crate) boot: Option<String>,
    /// The mistakes that keep the daemon from the configuration on disk.
    pub(crate) configuration_problem: Option<String>,
    /// True after a stop began: the daemon takes on nothing new.
    pub(crate) is_draining: bool,
    /// True if the folder or the socket of this node is another one than at the daemon's start.
    pub(crate) is_misplaced: bool,
}

impl State {
    /// Returns the state at the start: no listing yet and no connection. `home` is the distribution
    /// that the daemon's containerd and folder belong to. `more_dirs` are the images folders after
    /// the first one.
    pub(crate) fn new(
        settings: Settings,
        (images_dir, more_dirs): (PathBuf, &[PathBuf]),
        home: Option<Distribution>,
        mut ledger: Ledger,
        boot: Option<String>,
        now: Instant,
    ) -> State {
        ledger.set_folders(more_dirs);
        State {
            settings: Arc::new(settings),
            folders: FolderState::all(&images_dir, more_dirs, &ledger),
            trusted: None,
            keys: None,
            images_dir,
            ledger,
            unsaved: false,
            roster: Roster::default(),
            relist: true,
            lanes: Lanes::default(),
            connection: Connection::Down { next: now },
            link: Link::default(),
            healing: Healing::default(),
            following: Following::new(home),
            room: RoomState::new(now),
            required: RequiredState::default(),
            receipts: ReceiptsState::default(),
            unpack: UnpackState::default(),
            moved: HashSet::new(),
            elsewhere: HashMap::new(),
            reworded: HashSet::new(),
            abandoned: HashSet::new(),
            rows: Rows::default(),
            boot,
            configuration_problem: None,
            is_draining: false,
            is_misplaced: false,
        }
    }
}
