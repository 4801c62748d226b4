//! Checks of containerd: its answer, its namespace and platform, its disk, and other importers.

use basics::Foreign;
use containerd::Deprecation;
use import::labels::EXPIRES;
use import::space::Disk;
use jiff::Timestamp;
use node::decide::coexistence::{self, Sight};
use node::decide::desired;
use node::place::Place;
use node::runtime::{self, Containerd, Unusable};
use node::settings::{AfterImport, PlatformChoice, Settings, Signatures};
use node::state::ledger;
use platforms::Matcher;

use super::{Finding, gzip, note, ok, problem};
use crate::output::bytes;

/// With less than this share of containerd's disk free, kubelet evicts pods and removes images by
/// default (`imagefs.available<15%`).
const EVICTION_PERCENT: u64 = 15;

pub(super) async fn of_containerd(node: &Place, settings: &Settings) -> Vec<Finding> {
    let socket = node.socket.display();
    let runtime = match runtime::connect(&node.socket, settings).await {
        Ok(runtime) => runtime,
        Err(error @ Unusable::NoCri { .. }) => {
            return vec![problem(
                "containerd",
                error.to_string(),
                "set the socket of kubelet's containerd (`address:`), or enable its CRI plugin",
            )];
        }
        Err(error) if error.is_unreachable() => {
            return vec![problem(
                "containerd",
                format!("nothing answers on {socket}: {}", basics::chain(&error)),
                format!(
                    "start {}, or set the right socket (`address:`). The daemon waits for it",
                    node.distribution
                ),
            )];
        }
        Err(error) => {
            return vec![problem(
                "containerd",
                format!("{socket}: {}", basics::chain(&error)),
                "read containerd's log",
            )];
        }
    };
    let mut findings = vec![ok(
        "containerd",
        format!(
            "{} on {socket}, namespace {}, {}",
            runtime.version.text, settings.namespace, runtime.platform
        ),
    )];
    let warned = |warning: &String| {
        note(
            "containerd",
            warning,
            "remove `address:` if it is not intended. `cri: true` requires kubelet's containerd",
        )
    };
    findings.extend(runtime.warning.as_ref().map(warned));
    findings.extend(of_namespace(settings));
    findings.extend(of_platform(&runtime, settings));
    findings.push(of_disk(&runtime, settings));
    findings.extend(of_receipts(&runtime, node, settings).await);
    findings.push(of_others(&runtime, node, settings).await);
    findings.extend(gzip::of_gzip(node, settings, &runtime.version).await);
    findings.extend(of_expiry(&runtime).await);
    findings.extend(of_deprecations(&runtime).await);
    findings
}

/// Reports records that containerd's garbage collector deletes at a certain time.
async fn of_expiry(runtime: &Containerd) -> Option<Finding> {
    /// Most names in the finding.
    const NAMED: usize = 3;
    // If they cannot be listed, another check reports the reason.
    let records = runtime.client.images_labelled(&[EXPIRES]).await.ok()?;
    let names: Vec<String> = records.into_iter().map(|record| record.name).collect();
    if names.is_empty() {
        return None;
    }
    let more = match names.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    Some(note(
        "expiry",
        format!(
            "image records have the label {EXPIRES}. containerd 2.0 and later deletes them at that time, even if \
             they are pinned: {}{more}",
            names[..names.len().min(NAMED)].join(", ")
        ),
        format!(
            "nothing for images of bundles: the daemon removes the label. For other images: ctr -n k8s.io images label NAME {EXPIRES}="
        ),
    ))
}

/// Reports features in use that a later containerd drops, as containerd lists them.
async fn of_deprecations(runtime: &Containerd) -> Vec<Finding> {
    let warnings = match runtime.client.deprecations().await {
        Ok(warnings) => warnings,
        Err(error) => {
            return vec![problem(
                "deprecated",
                basics::chain(&error),
                "read containerd's log",
            )];
        }
    };
    let finding = |warning: Deprecation| {
        let id = warning.id.rsplit('/').next().unwrap_or_default();
        note(
            "deprecated",
            format!("{id}: {}", warning.message),
            "change it before the next upgrade of containerd. `ctr deprecations list` shows its last use",
        )
    };
    warnings.into_iter().map(finding).collect()
}

fn of_namespace(settings: &Settings) -> Option<Finding> {
    let namespace = &settings.namespace;
    (namespace != runtime::KUBERNETES).then(|| {
        note(
            "namespace",
            format!(
                "images go to {namespace}, and kubelet sees those in {} only",
                runtime::KUBERNETES
            ),
            format!("remove `namespace:`, unless {namespace} is intended"),
        )
    })
}

/// Reports platforms of the configuration that the node cannot run.
fn of_platform(runtime: &Containerd, settings: &Settings) -> Option<Finding> {
    let PlatformChoice::These(chosen) = &settings.platforms else {
        return None;
    };
    let node = Matcher::only(&runtime.platform, runtime.version.rules());
    let foreign: Vec<String> = chosen
        .iter()
        .filter(|platform| !node.accepts(platform))
        .map(ToString::to_string)
        .collect();
    (!foreign.is_empty()).then(|| {
        note(
            "platform",
            format!(
                "the daemon imports images for {}, which this node ({}) cannot run",
                foreign.join(", "),
                runtime.platform
            ),
            "remove `platforms:`, unless the images are for other nodes",
        )
    })
}

fn of_disk(runtime: &Containerd, settings: &Settings) -> Finding {
    let Some(store) = &runtime.store else {
        return note(
            "disk",
            "containerd's content store is not visible from here, so its disk cannot be checked",
            "run airgapd doctor on the node itself",
        );
    };
    let disk = match Disk::of(store) {
        Ok(disk) => disk,
        Err(error) => {
            return note(
                "disk",
                format!("{}: {error}", store.display()),
                "check if it is mounted",
            );
        }
    };
    let text = format!(
        "{} of {} free at {}",
        bytes(disk.free),
        bytes(disk.size),
        store.display()
    );
    if let Some(shortage) = runtime::space(settings, runtime).below_minimum() {
        return problem(
            "disk",
            shortage.to_string(),
            "free space there, or lower `minFree:`",
        );
    }
    match disk.free < disk.size / 100 * EVICTION_PERCENT {
        true => note(
            "disk",
            format!("{text}, which is less than {EVICTION_PERCENT} %: kubelet may be removing images"),
            "free space there",
        ),
        false => ok("disk", text),
    }
}

/// Reports the space that receipts keep from kubelet's garbage collection. Recommends receipts if
/// the disk of the images folder is short, and they would free a part of it.
async fn of_receipts(runtime: &Containerd, node: &Place, settings: &Settings) -> Vec<Finding> {
    let Some(ledger) = ledger::read(&settings.state_dir) else {
        return Vec::new();
    };
    let receipts: Vec<String> = ledger.receipts().map(ledger::label_name).collect();
    let mut findings = Vec::new();
    if !receipts.is_empty()
        && let Ok(survey) = runtime::glance(runtime, &ledger).await
    {
        let used = desired::disk_use(&ledger, &survey);
        let held = receipts.iter().filter_map(|name| used.get(name));
        let held = bytes(held.map(|used| used.store_bytes).sum());
        let count = basics::counted(receipts.len(), "receipt");
        let text = format!("{count}: kubelet's garbage collection does not get their {held} in containerd");
        findings.push(ok("receipts", text));
    }
    for (receipt, error) in ledger.degraded_receipts() {
        let text = format!("{}: {error}", Foreign::file_name(receipt));
        findings.push(problem(
            "receipts",
            text,
            "bring a bundle that the text names into the images folder",
        ));
    }
    let savings = ledger.bytes_of_files();
    let is_short = |disk: Disk| disk.free < disk.size / 100 * EVICTION_PERCENT;
    let wants_keep = settings.after_import == AfterImport::Keep;
    if wants_keep && savings > 0 && Disk::of(&node.images_dir).is_ok_and(is_short) {
        let folder = node.images_dir.display();
        let text = format!(
            "the disk of {folder} is short, and its bundles in place take {}",
            bytes(savings)
        );
        let remedy = "set `afterImport: receipt`, if another place keeps the bundles";
        findings.push(note("receipts", text, remedy));
    }
    findings
}

async fn of_others(runtime: &Containerd, node: &Place, settings: &Settings) -> Finding {
    let client = &runtime.client;
    let sight = match Sight::look(client, Timestamp::now()).await {
        Ok(sight) => sight,
        Err(error) => return problem("others", basics::chain(&error), "read containerd's log"),
    };
    let evidence = sight.evidence(&node.images_dir, node.is_home.then_some(node.distribution));
    if settings.signatures == Some(Signatures::Require)
        && let Some(why) = coexistence::unguarded(settings.coexistence, &evidence)
    {
        let remedy = "set imagesDir to a folder of its own (docs/coexistence.md)";
        return problem("others", format!("the daemon imports nothing: {why}"), remedy);
    }
    match coexistence::judge(settings.coexistence, &evidence) {
        None => ok("others", "no other importer uses this folder"),
        Some((importer, why)) => note(
            "others",
            format!(
                "{importer} imports this folder, too ({why}): the daemon lets it go first, then checks and completes its work"
            ),
            "nothing. docs/coexistence.md explains the order, and how to have the folder alone",
        ),
    }
}
