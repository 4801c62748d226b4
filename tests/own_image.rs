//! airgapd's own image: airgapd imports the released bundle, and containers of the image run.

use std::path::{Path, PathBuf};
use std::process::Command;

use lab::Options;
use workshop::own_image::{self, PROGRAM, Variant};

use crate::support::bundles::native;
use crate::support::{Node, Own, on_its_own_containerd};

/// Returns the program of this test and the libraries that it is linked to. The released program is
/// linked statically and needs none.
pub fn files(node: &Node) -> Vec<(String, PathBuf)> {
    let program = Path::new(env!("CARGO_BIN_EXE_airgapd"));
    let stripped = node.path("airgapd");
    // Symbols are four fifths of the program.
    let strip = Command::new("strip")
        .arg(program)
        .arg("-o")
        .arg(&stripped)
        .status();
    assert!(strip.expect("binutils come with the linker").success());
    let output = Command::new("ldd").arg(program).output().expect("ldd runs");
    let libraries = String::from_utf8(output.stdout).expect("names of libraries");
    let paths = libraries.split_whitespace().filter(|word| word.starts_with('/'));
    paths
        .map(|path| (path.trim_start_matches('/').to_owned(), PathBuf::from(path)))
        .chain([(PROGRAM.to_owned(), stripped)])
        .collect()
}

/// Options of the containerd.
fn usual() -> Options {
    Options::default()
}

fn airgapd_brings_its_own_image_and_containers_of_it_run(own: &mut Own) {
    let node = Node::on(&own.target);
    let platform = &native()["linux/".len()..];
    let (architecture, variant) = platform
        .split_once('/')
        .map_or((platform, None), |(architecture, level)| {
            (architecture, Some(level))
        });
    let variant = Variant {
        architecture,
        variant,
        files: files(&node),
    };
    let bundle = node.path("airgapd-image.tar");
    let name = own_image::write(&bundle, "1.2.3", &[variant]).expect("the bundle is written");
    node.import([&bundle]).exits(0);
    assert!(own.target.is_pinned(&name));
    let program = format!("/{PROGRAM}");
    let said = own.containerd.run(&name, &[&program, "--version"]);
    let version = format!("airgapd {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(said.expect("a container runs"), version);
}

on_its_own_containerd!(usual; airgapd_brings_its_own_image_and_containers_of_it_run);
