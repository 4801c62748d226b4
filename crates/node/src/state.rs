//! Everything that the daemon knows. Only the decisions in `decide` change it.

pub(crate) mod crash;
mod entry;
pub mod ledger;
pub mod roster;
mod store;
mod suspects;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use crate::decide::compare::Connection;
use crate::decide::follow::Following;
use crate::decide::healing::Healing;
use crate::decide::lanes::Lanes;
use crate::decide::line::Rows;
use crate::decide::link::Link;
use crate::decide::listing::FolderState;
use crate::decide::require::RequiredState;
use crate::decide::room::RoomState;
use crate::decide::unpack::UnpackState;
use crate::place::Distribution;
use crate::settings::Settings;
use crate::state::ledger::Ledger;
use crate::state::roster::Roster;

/// Everything that the daemon knows and decides by.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) settings: Arc<Settings>,
    pub(crate) images_dir: PathBuf,
    /// The imported images, for this run and the next ones.
    pub(crate) ledger: Ledger,
    /// True if the ledger has news that can wait until no job runs.
    pub(crate) unsaved: bool,
    /// The files of the folder and the phase of each.
    pub(crate) roster: Roster,
    /// True if the folder has to be listed again.
    pub(crate) relist: bool,
    pub(crate) folder: FolderState,
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
    /// that the daemon's containerd and folder belong to.
    pub(crate) fn new(
        settings: Settings,
        images_dir: PathBuf,
        home: Option<Distribution>,
        ledger: Ledger,
        boot: Option<String>,
        now: Instant,
    ) -> State {
        State {
            settings: Arc::new(settings),
            images_dir,
            ledger,
            unsaved: false,
            roster: Roster::default(),
            relist: true,
            folder: FolderState::default(),
            lanes: Lanes::default(),
            connection: Connection::Down { next: now },
            link: Link::default(),
            healing: Healing::default(),
            following: Following::new(home),
            room: RoomState::new(now),
            required: RequiredState::default(),
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
