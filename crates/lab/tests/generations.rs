//! Every generation of containerd starts privately, does what tests need, and leaves nothing
//! behind.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use lab::{Containerd, Generation, Options, parts};
use workshop::demo_bundle;

fn on_each(test: impl Fn(Generation) + Sync) {
    std::thread::scope(|scope| {
        for generation in lab::generations() {
            let test = &test;
            scope.spawn(move || test(generation));
        }
    });
}

/// Puts a blob without any reference into the content store.
fn ingest(containerd: &Containerd, text: &str) {
    let mut ctr = containerd
        .ctr_in(lab::runtime::NAMESPACE)
        .args(["content", "ingest", text])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    ctr.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(ctr.wait().unwrap().success());
}

fn blobs(containerd: &Containerd) -> usize {
    containerd.ctr(&["content", "ls", "-q"]).unwrap().lines().count()
}

fn is_mentioned_in_proc(folder: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let name = folder.to_str().unwrap();
    let processes = fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| fs::read(entry.ok()?.path().join("cmdline")).ok());
    mounts.contains(name)
        || processes
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .any(|line| line.contains(name))
}

/// Returns true if the condition holds within half a minute.
fn eventually(condition: impl Fn() -> bool) -> bool {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}

#[test]
fn all_generations_run_side_by_side_with_cri() {
    let running: Vec<_> = lab::generations()
        .into_iter()
        .map(|generation| Containerd::start(generation, &Options::default()).unwrap())
        .collect();
    for containerd in &running {
        assert_eq!(
            Generation::of_version(containerd.version_text()),
            Some(containerd.generation())
        );
        let plugins = containerd.ctr(&["plugins", "ls"]).unwrap();
        let cri = plugins
            .lines()
            .find(|line| line.contains("io.containerd.grpc.v1") && line.contains(" cri "));
        assert!(
            cri.is_some_and(|line| line.trim_end().ends_with("ok")),
            "{plugins}"
        );
    }
}

#[test]
fn without_cri_no_cri_plugin_is_loaded() {
    on_each(|generation| {
        let containerd = Containerd::start(
            generation,
            &Options {
                cri: false,
                ..Options::default()
            },
        )
        .unwrap();
        let plugins = containerd.ctr(&["plugins", "ls"]).unwrap();
        assert!(
            !plugins
                .lines()
                .any(|line| line.contains("cri") && line.trim_end().ends_with("ok")),
            "{plugins}"
        );
    });
}

#[test]
fn a_forced_collection_has_removed_unreferenced_blobs_when_it_returns() {
    on_each(|generation| {
        // The collection at the start of containerd would otherwise remove the blob first.
        let late = "[plugins.\"io.containerd.gc.v1.scheduler\"]\nstartup_delay = \"1h\"".to_owned();
        let options = Options {
            cri: false,
            extra_config: late,
            ..Options::default()
        };
        let containerd = Containerd::start(generation, &options).unwrap();
        ingest(&containerd, "no record refers to this");
        assert_eq!(blobs(&containerd), 1);
        containerd.force_gc().unwrap();
        assert_eq!(blobs(&containerd), 0);
    });
}

#[test]
fn state_outlives_a_kill_and_a_restart() {
    on_each(|generation| {
        let mut containerd = Containerd::start(generation, &Options::default()).unwrap();
        containerd.ctr(&["leases", "create", "--id", "a-lease"]).unwrap();
        containerd.kill().unwrap();
        assert_eq!(containerd.pid(), None);
        assert!(containerd.ctr(&["version"]).is_err());
        containerd.restart().unwrap();
        assert!(
            containerd
                .ctr(&["leases", "ls", "-q"])
                .unwrap()
                .contains("a-lease")
        );
    });
}

#[test]
fn nothing_is_left_of_a_dropped_one() {
    on_each(|generation| {
        let containerd = Containerd::start(generation, &Options::default()).unwrap();
        let folder = containerd.root().parent().unwrap().to_owned();
        assert!(is_mentioned_in_proc(&folder));
        drop(containerd);
        assert!(!is_mentioned_in_proc(&folder));
        assert!(!folder.exists());
    });
}

#[test]
fn one_that_cannot_start_says_why_with_its_log() {
    on_each(|generation| {
        let options = Options {
            extra_config: "[no such table".to_owned(),
            ..Options::default()
        };
        let error = format!("{:#}", Containerd::start(generation, &options).unwrap_err());
        assert!(error.contains("it exited") && error.contains("toml"), "{error}");
    });
}

/// Starts a containerd and imports the demonstration's images with its own client.
fn with_images(generation: Generation) -> Containerd {
    let folder = tempfile::tempdir().unwrap();
    let bundle = folder.path().join("bundle.tar");
    demo_bundle::write(&bundle, &parts::busybox().unwrap()).unwrap();
    let containerd = Containerd::start(generation, &Options::default()).unwrap();
    containerd
        .ctr(&[
            "images",
            "import",
            "--no-unpack",
            "--local",
            bundle.to_str().unwrap(),
        ])
        .or_else(|_| containerd.ctr(&["images", "import", "--no-unpack", bundle.to_str().unwrap()]))
        .unwrap();
    containerd
}

#[test]
fn a_container_runs_from_an_image_and_its_output_comes_back() {
    on_each(|generation| {
        let containerd = with_images(generation);
        let output = containerd.run(demo_bundle::HELLO, &[]).unwrap();
        assert!(
            output.contains("Hello from registry.example/demo/hello:1.0"),
            "{output}"
        );
        let error = containerd
            .run(demo_bundle::HELLO, &["/bin/sh", "-c", "echo why >&2; exit 3"])
            .unwrap_err();
        assert!(error.to_string().contains("why"), "{error}");
    });
}

#[test]
fn a_running_container_does_not_outlive_its_containerd() {
    on_each(|generation| {
        let mut containerd = with_images(generation);
        let folder = containerd.root().parent().unwrap().to_owned();
        // An argument that no other process has.
        let number = Generation::ALL
            .iter()
            .position(|each| *each == generation)
            .unwrap();
        let mark = format!("8{}{number}", std::process::id());
        let sleeping = || {
            fs::read_dir("/proc")
                .unwrap()
                .filter_map(|entry| fs::read(entry.ok()?.path().join("cmdline")).ok())
                .any(|line| line.starts_with(b"/bin/sleep") && String::from_utf8_lossy(&line).contains(&mark))
        };
        containerd
            .run_in_background(demo_bundle::HELLO, "sleeper", &["/bin/sleep", &mark])
            .unwrap();
        // runc returns before the container's own program replaces it.
        assert!(eventually(sleeping));
        containerd.kill().unwrap();
        assert!(sleeping(), "a container outlives containerd's crash");
        drop(containerd);
        assert!(!sleeping(), "the container ended with its containerd");
        assert!(!is_mentioned_in_proc(&folder));
        assert!(!folder.exists());
    });
}

#[test]
fn a_containerd_that_cannot_start_says_why_at_once() {
    on_each(|generation| {
        let broken = Options {
            extra_config:
                "[plugins.\"io.containerd.internal.v1.restart\"]\ninterval = \"often\"\nthis is no TOML"
                    .to_owned(),
            ..Options::default()
        };
        let started = Instant::now();
        let error = Containerd::start(generation, &broken).unwrap_err().to_string();
        let first = error.lines().next().unwrap();
        assert!(
            first.contains("does not start") && first.contains("toml"),
            "{error}"
        );
        assert!(
            started.elapsed() < Duration::from_secs(60),
            "{:?}",
            started.elapsed()
        );
    });
}
