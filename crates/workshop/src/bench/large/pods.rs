//! The start of a node: kubelet starts 30 pods while the daemon finds new bundles.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bundle::fixtures::{Image, Layer, LayerFile, Layout};
use lab::kubelet::{Kubelet, Release};
use serde_json::json;

use super::super::bundles::{Noise, PLATFORM, image};
use super::super::daemon::Node;
use super::super::{Arguments, Bench, Contender, contender, measure, order};
use super::{bench, table};

/// Number of pods of one container.
const PODS: usize = 30;

/// Number of bundles that the daemon imports.
const BUNDLES: usize = 20;

/// Size of the layer in each of these bundles, in bytes.
const LAYER: usize = 60 << 20;

/// Longest time until all pods run, or all have gone.
const WITHIN: Duration = Duration::from_secs(300);

/// The image of the pods' sandboxes ([`lab::Options`]).
const SANDBOX: &str = "airgapd.test/pause:latest";

/// The image of the pods.
const APP: &str = "registry.example/pods/app:1";

/// The daemon that starts together with kubelet.
#[derive(Clone, Copy)]
struct Beside {
    name: &'static str,
    /// True if the daemon runs.
    daemon: bool,
    /// True if the bundles are in place already.
    in_place: bool,
    /// The value of `rateLimit`.
    rate: Option<&'static str>,
}

const BESIDE: [Beside; 4] = [
    Beside {
        name: "no daemon",
        daemon: false,
        in_place: false,
        rate: None,
    },
    Beside {
        name: "daemon, 20 bundles in place",
        daemon: true,
        in_place: true,
        rate: None,
    },
    Beside {
        name: "daemon, 20 new bundles",
        daemon: true,
        in_place: false,
        rate: None,
    },
    Beside {
        name: "daemon, 20 new bundles, rateLimit: 50MiB",
        daemon: true,
        in_place: false,
        rate: Some("50MiB"),
    },
];

/// Times of a start in seconds.
struct Times {
    /// Until all pods run.
    pods: f64,
    /// Until all bundles are in place. Zero without a daemon.
    bundles: f64,
}

/// Starts kubelet with pods, beside each daemon in turn.
pub(super) fn run(arguments: &Arguments, program: &Path) -> Result<String> {
    let bench = bench(arguments, program, true, None)?;
    let node = Node::of(&bench);
    import_images_of_pods(&bench)?;
    let socket = bench.containerd.socket();
    let mut kubelet = Kubelet::start(Release::USUAL, &socket, "")?;
    kubelet.stop()?;
    let base = bench.containerd.ctr(&["images", "ls", "-q"])?;
    node.create()?;
    let mut layers = Vec::new();
    for number in 0..BUNDLES {
        let name = format!("registry.example/beside/app{number}:1");
        let layer = Layer::files([LayerFile::new("file", Noise::of(&name).bytes(LAYER))]);
        layers.push(layer.digest().to_string());
        let path = node.images.join(format!("app{number}.tar"));
        Layout::new().image(image(&name, &[layer])).write_to(&path);
    }
    let mut times: [Vec<Times>; BESIDE.len()] = Default::default();
    for round in 0..bench.runs {
        for at in order(round, BESIDE.len()) {
            let started = start(&bench, &node, &base, &layers, &mut kubelet, BESIDE[at]);
            times[at].push(started.with_context(|| BESIDE[at].name)?);
        }
    }
    let alone: Vec<_> = times[0].iter().map(|times| times.pods).collect();
    let rows: Vec<_> = BESIDE
        .iter()
        .zip(&times)
        .map(|(beside, times)| {
            let share = times.iter().zip(&alone).map(|(times, alone)| times.pods / alone);
            vec![
                beside.name.to_owned(),
                format!("{:.2}", table::median(share)),
                format!("{:.1}", table::median(times.iter().map(|times| times.pods))),
                format!("{:.1}", table::median(times.iter().map(|times| times.bundles))),
            ]
        })
        .collect();
    let headings = [
        "",
        "pods against no daemon",
        "pods run after s",
        "bundles in place after s",
    ];
    Ok(table::table(&headings, &rows))
}

/// Imports and unpacks the images of the pods, so that kubelet only has to start them.
fn import_images_of_pods(bench: &Bench) -> Result<()> {
    let busybox = fs::read(lab::parts::busybox()?)?;
    let files = [
        LayerFile::folder("bin/"),
        LayerFile::executable("bin/busybox", busybox),
    ];
    let layer = Layer::files(files);
    let sleeps = |name: &str| {
        Image::new(name)
            .platform(PLATFORM)
            .with_layer(layer.clone())
            .entrypoint(&["/bin/busybox", "sleep", "86400"])
    };
    let path = bench.folder.path().join("pods.tar");
    [SANDBOX, APP]
        .iter()
        .fold(Layout::new(), |layout, name| layout.image(sleeps(name)))
        .write_to(&path);
    measure::run(contender::commands(bench, Contender::AirgapdUnpacking, &path)?)?;
    Ok(())
}

/// Starts kubelet and perhaps the daemon, and waits until both have done their work. Afterwards no
/// pod is left.
fn start(
    bench: &Bench,
    node: &Node,
    base: &str,
    layers: &[String],
    kubelet: &mut Kubelet,
    beside: Beside,
) -> Result<Times> {
    prepare(bench, node, base, layers, beside)?;
    for number in 0..PODS {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": format!("pod{number}"), "namespace": "default"},
            "spec": {
                "hostNetwork": true, "terminationGracePeriodSeconds": 1,
                "containers": [{"name": "app", "image": APP, "imagePullPolicy": "Never"}],
            },
        });
        fs::write(
            kubelet.static_pods().join(format!("pod{number}.json")),
            pod.to_string(),
        )?;
    }
    let started = Instant::now();
    let settings: Vec<_> = beside
        .rate
        .iter()
        .map(|rate| ("AIRGAPD_RATE_LIMIT", *rate))
        .collect();
    let mut daemon = match beside.daemon {
        true => Some(node.start(bench, &settings)?),
        false => None,
    };
    let times = thread::scope(|scope| {
        let bundles = scope.spawn(move || -> Result<f64> {
            let Some(daemon) = &mut daemon else {
                return Ok(0.0);
            };
            daemon.until_in_place(BUNDLES, BUNDLES)?;
            let bundles = started.elapsed().as_secs_f64();
            daemon.stop()?;
            Ok(bundles)
        });
        // Each pod has a sandbox and a container. The daemon stops when this thread ends.
        let running = kubelet.restart().and_then(|()| until_tasks(bench, 2 * PODS));
        let pods = started.elapsed().as_secs_f64();
        let bundles = bundles.join().expect("waiting never panics")?;
        running?;
        Ok::<_, anyhow::Error>(Times { pods, bundles })
    })?;
    for number in 0..PODS {
        fs::remove_file(kubelet.static_pods().join(format!("pod{number}.json")))?;
    }
    until_tasks(bench, 0)?;
    kubelet.stop()?;
    Ok(times)
}

/// Brings the bundles into place, or removes their images with these layers and the daemon's state.
/// `base` lists the images that stay.
fn prepare(bench: &Bench, node: &Node, base: &str, layers: &[String], beside: Beside) -> Result<()> {
    if beside.in_place {
        let mut daemon = node.start(bench, &[])?;
        daemon.until_in_place(BUNDLES, BUNDLES)?;
        daemon.stop()?;
    } else {
        // CRI has records of its own for the images of bundles, and they keep the layers.
        let listed = bench.containerd.ctr(&["images", "ls", "-q"])?;
        let ours: Vec<_> = listed.lines().filter(|name| !base.contains(name)).collect();
        if !ours.is_empty() {
            bench.containerd.ctr(&[&["images", "rm"][..], &ours].concat())?;
        }
        fs::remove_dir_all(&node.state)?;
        fs::create_dir(&node.state)?;
        bench.containerd.force_gc()?;
        let left = bench.containerd.ctr(&["content", "ls", "-q"])?;
        if layers.iter().any(|layer| left.contains(layer)) {
            bail!("containerd still has layers of images that were removed");
        }
    }
    rustix::fs::sync();
    Ok(())
}

/// Waits until containerd runs this number of tasks.
fn until_tasks(bench: &Bench, number: usize) -> Result<()> {
    let deadline = Instant::now() + WITHIN;
    loop {
        let listed = bench.containerd.ctr(&["tasks", "ls"])?;
        // The first line is the heading.
        let running = listed
            .lines()
            .skip(1)
            .filter(|line| line.ends_with("RUNNING"))
            .count();
        if running == number {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("containerd runs {running} tasks, not {number}");
        }
        thread::sleep(Duration::from_millis(200));
    }
}
