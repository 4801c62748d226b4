//! What the daemon knows. It changes by the decisions of `decide` alone.

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

/// Everything the daemon knows and decides by.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) settings: Arc<Settings>,
    pub(crate) images_dir: PathBuf,
    /// What was imported, for this run and the next ones.
    pub(crate) ledger: Ledger,
    /// The ledger has news that can wait until there is nothing else to do.
    pub(crate) unsaved: bool,
    /// The files of the folder and how far each has come.
    pub(crate) roster: Roster,
    /// The folder has to be listed.
    pub(crate) relist: bool,
    pub(crate) folder: FolderState,
    /// The jobs.
    pub(crate) lanes: Lanes,
    pub(crate) connection: Connection,
    /// When to connect again, and what of it is news.
    pub(crate) link: Link,
    /// How soon images are restored.
    pub(crate) healing: Healing,
    /// Bundles that are left to another importer first.
    pub(crate) following: Following,
    /// Containerd's disk.
    pub(crate) room: RoomState,
    /// The images that the configuration requires.
    pub(crate) required: RequiredState,
    /// Images that are unpacked ahead.
    pub(crate) unpack: UnpackState,
    /// Records that others moved, and where to, as far as it was said.
    pub(crate) moved: HashSet<(String, String)>,
    /// The same by bundle, as of the last comparison.
    pub(crate) elsewhere: HashMap<OsString, BTreeSet<String>>,
    /// Bundles that were imported with other images than before, until a comparison has judged
    /// their labels.
    pub(crate) reworded: HashSet<OsString>,
    /// Bundles whose jobs were dropped: their leases are still there, for the next job.
    pub(crate) abandoned: HashSet<OsString>,
    /// What is told by name, and what only counted.
    pub(crate) rows: Rows,
    /// The boot id of this machine; `None` where the kernel does not tell.
    pub(crate) boot: Option<String>,
    /// Why the configuration on disk is not the one that holds, where that is so.
    pub(crate) configuration_problem: Option<String>,
    /// A stop has begun: nothing new is taken on.
    pub(crate) is_draining: bool,
    /// Folder or socket of this node are others than when the daemon began.
    pub(crate) is_misplaced: bool,
}

impl State {
    /// The state at the start: nothing was listed yet, and there is no connection. `home` is the
    /// distribution whose containerd and folder ours are.
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
