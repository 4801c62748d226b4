//! Stops a disk for minutes while a blob is committed. The daemon waits for containerd and sends
//! nothing again.
//!
//! The test freezes the file system of a real containerd (fsfreeze(8)) when it has all bytes of a
//! layer. So the commit cannot end before the thaw. On a fast disk the commit may be over, and then
//! a later step cannot end.

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
/// Size of a layer whose sync takes a while even on a fast disk.
const LAYER: u64 = 96 * MIB;

/// A frozen file system, on which every write waits. Dropping this thaws it.
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
    std::fs::rename(&path, node.images().join("slow.tar")).expect("the file can be moved");
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
    daemon.wait_until("the image is imported", || {
        target.record(NAME).is_some() && target.is_pinned(NAME)
    });
    let log = daemon.finish(target);
    say(&format!(
        "containerd {}: a disk that stood still for {} s in front of a commit; imported {} ms after that",
        containerd.generation(),
        standstill.as_secs(),
        thawed.elapsed().as_millis()
    ));
    assert_eq!(
        log.matches(" importing ").count(),
        1,
        "the import started again: {log}"
    );
}

/// Runs for `cargo xtask standstill`, for minutes.
#[test]
#[ignore = "takes long: `cargo xtask standstill` runs it"]
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
