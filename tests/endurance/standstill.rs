//! A disk that stands still for minutes while a blob is committed: containerd is waited for, and
//! nothing is sent again.
//!
//! The file system under a real containerd is frozen (fsfreeze(8)) as soon as it has all bytes of a
//! layer, so that the commit cannot end before it is thawed; where the disk is fast, some step
//! after that commit cannot.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use bundle::fixtures::{Image, Layer};
use lab::Options;

use super::{Asked, say};
use crate::support::bundles::{self, native};
use crate::support::target::run_on_own;
use crate::support::{Node, Own, unique};

const NAME: &str = "registry.test/slow:1";
const MIB: u64 = 1 << 20;
/// Takes a while to be synced even by a fast disk.
const LAYER: u64 = 96 * MIB;

/// A file system on which every write waits; it goes on when this is dropped.
struct Frozen(PathBuf);

impl Frozen {
    fn freeze(folder: PathBuf) -> Frozen {
        fsfreeze("--freeze", &folder);
        Frozen(folder)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        fsfreeze("--unfreeze", &self.0);
    }
}

fn fsfreeze(option: &str, folder: &PathBuf) {
    let status = Command::new("fsfreeze").arg(option).arg(folder).status();
    assert!(status.expect("fsfreeze is in util-linux").success(), "{option}");
}

fn outwait(own: &mut Own, standstill: Duration) {
    let Own { containerd, target } = own;
    let (root, target) = (containerd.root(), &*target);
    let node = Node::on(target);
    node.configure_also("cri: false");
    let daemon = node.start();
    let layer = Image::new(NAME).platform(native()).layer(unique());
    let path = node.path("slow.tar");
    bundles::write(&path, [layer.with_layer(Layer::zeros(LAYER))]);
    std::fs::rename(&path, node.images().join("slow.tar")).expect("it can be moved");
    daemon.wait_until("all bytes of the layer are there", || {
        let ingests = target.ingests_in_full();
        ingests.iter().any(|ingest| ingest.offset >= LAYER)
    });
    let frozen = Frozen::freeze(root);
    let since = Instant::now();
    while since.elapsed() < standstill {
        std::thread::sleep(Duration::from_secs(1));
        assert!(!daemon.log().contains("failed"), "{}", daemon.log());
    }
    drop(frozen);
    let thawed = Instant::now();
    daemon.wait_until("it is imported", || {
        target.record(NAME).is_some() && target.is_pinned(NAME)
    });
    let log = daemon.finish(target);
    say(&format!(
        "containerd {}: a disk that stood still for {} s in front of a commit; imported {} ms after that",
        containerd.generation(),
        standstill.as_secs(),
        thawed.elapsed().as_millis()
    ));
    assert_eq!(log.matches(" importing ").count(), 1, "it began anew: {log}");
}

/// Minutes are what `cargo xtask standstill` is for.
#[test]
#[ignore = "takes as long as asked for; `cargo xtask standstill` runs it"]
fn a_disk_that_stands_still_while_a_blob_is_committed_is_waited_for() {
    let Asked { rounds: seconds, .. } = Asked::or(180);
    let options = Options {
        disk: Some(6 * LAYER),
        cri: false,
        ..Options::default()
    };
    for generation in super::generations_asked_for() {
        run_on_own(generation, &options, |own| {
            outwait(own, Duration::from_secs(seconds as u64));
        });
    }
}
