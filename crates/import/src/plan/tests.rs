use std::collections::BTreeMap;

use containerd::ImageRecord;
use oci_spec::image::MediaType;

use super::record::created_labels;
use super::sources::MOST_SOURCES;
use super::*;
use crate::labels::{CRI_MANAGED, Source};
use crate::select::{ChildKind, Closure};
use crate::unpack::Unpacker;

fn digest(fill: char) -> Digest {
    format!("sha256:{}", fill.to_string().repeat(64)).parse().unwrap()
}

fn descriptor(fill: char) -> Descriptor {
    Descriptor::new(MediaType::ImageManifest, 7, digest(fill))
}

fn leaf(fill: char, size: u64) -> Member {
    Member {
        digest: digest(fill),
        size,
        children: Vec::new(),
    }
}

fn child(kind: ChildKind, fill: char) -> Child {
    Child {
        kind,
        digest: digest(fill),
    }
}

/// Returns an image with a manifest `m` over config `c` and layer `1`.
fn image(name: &str) -> Taken {
    let children = vec![child(ChildKind::Layer, '1'), child(ChildKind::Config, 'c')];
    let manifest = Member {
        digest: digest('a'),
        size: 7,
        children,
    };
    let closure = Closure {
        blobs: vec![leaf('1', 100), leaf('c', 10), manifest],
        platforms: vec!["linux/amd64".into()],
    };
    Taken {
        records: vec![NamedTarget {
            name: name.into(),
            target: descriptor('a').into(),
        }],
        closure,
    }
}

fn intent() -> Intent {
    Intent::new(Source::Bundle("b.tar".into()), OnConflict::Replace)
}

/// Returns a blob with a label that names the repository `r.test/a`.
fn blob(fill: char, labels: &[(&str, char)]) -> BlobInfo {
    let source = (SOURCE.to_owned(), "a".to_owned());
    let labels = labels
        .iter()
        .map(|(key, value)| ((*key).to_owned(), digest(*value).to_string()))
        .chain([source])
        .collect();
    BlobInfo {
        digest: digest(fill),
        size: 1,
        labels,
    }
}

fn survey(records: Vec<ImageRecord>, blobs: Vec<BlobInfo>) -> Survey {
    let blobs = blobs
        .into_iter()
        .map(|blob| (blob.digest.clone(), blob))
        .collect();
    Survey {
        records: records
            .into_iter()
            .map(|record| (record.name.clone(), record))
            .collect(),
        blobs,
        ..Survey::default()
    }
}

fn record(name: &str, target: char, labels: Labels) -> ImageRecord {
    ImageRecord {
        name: name.into(),
        target: descriptor(target),
        labels,
        created_at: None,
    }
}

fn ours() -> Labels {
    created_labels(&intent())
}

const SOURCE: &str = "containerd.io/distribution.source.r.test";
const L0: &str = "containerd.io/gc.ref.content.l.0";
const CONFIG: &str = "containerd.io/gc.ref.content.config";

/// Returns the keys of the labels that a blob lacks.
fn lacking(step: &BlobStep, there: Option<&BlobInfo>) -> Vec<String> {
    let there = there.map(|blob| blob.labels.clone()).unwrap_or_default();
    let missing = missing_labels(&step.children, &step.sources, &there);
    missing.into_keys().collect()
}

fn whole() -> Vec<BlobInfo> {
    vec![
        blob('1', &[]),
        blob('c', &[]),
        blob('a', &[(L0, '1'), (CONFIG, 'c')]),
    ]
}

#[test]
fn an_empty_containerd_gets_every_blob_and_the_record() {
    let image = image("r.test/a:1");
    let plan = plan(&[&image], &Survey::default(), &intent());
    let steps = &plan.images[0];
    assert!(steps.blobs.iter().all(|step| step.action == BlobAction::Send));
    assert_eq!(lacking(&steps.blobs[2], None), [SOURCE, CONFIG, L0]);
    assert_eq!(steps.blobs[2].lacking, 3);
    assert!(matches!(&steps.records[0].action, RecordAction::Create(labels) if *labels == ours()));
    assert_eq!(plan.bytes_to_send(), 117);
    assert!(!plan.is_done());
}

#[test]
fn an_image_in_place_needs_nothing() {
    let image = image("r.test/a:1");
    let plan = plan(
        &[&image],
        &survey(vec![record("r.test/a:1", 'a', ours())], whole()),
        &intent(),
    );
    assert!(plan.is_done());
    assert!(
        plan.images[0]
            .blobs
            .iter()
            .all(|step| step.action == BlobAction::Leave)
    );
    assert_eq!(plan.images[0].records[0].action, RecordAction::Unchanged);
}

#[test]
fn blobs_that_are_there_are_held_while_the_rest_comes() {
    let image = image("r.test/a:1");
    let plan = plan(&[&image], &survey(Vec::new(), vec![blob('1', &[])]), &intent());
    let actions: Vec<_> = plan.images[0].blobs.iter().map(|step| step.action).collect();
    assert_eq!(actions, [BlobAction::Hold, BlobAction::Send, BlobAction::Send]);
    assert_eq!(plan.bytes_to_send(), 17);
}

#[test]
fn a_parent_that_is_there_without_labels_gets_them() {
    let image = image("r.test/a:1");
    let bare = vec![blob('1', &[]), blob('c', &[]), blob('a', &[(L0, '1')])];
    let there = survey(vec![record("r.test/a:1", 'a', ours())], bare);
    let plan = plan(&[&image], &there, &intent());
    let step = &plan.images[0].blobs[2];
    assert_eq!(lacking(step, there.blobs.get(&step.digest)), [CONFIG]);
    assert_eq!(step.lacking, 1);
    assert_eq!(plan.images[0].records[0].action, RecordAction::Unchanged);
    assert!(!plan.is_done());
}

#[test]
fn a_blob_that_does_not_say_where_it_is_from_gets_that_label() {
    let image = image("r.test/a:1");
    let mut blobs = whole();
    blobs[0].labels.clear();
    let there = survey(vec![record("r.test/a:1", 'a', ours())], blobs);
    let plan = plan(&[&image], &there, &intent());
    let steps = &plan.images[0].blobs;
    let lacks: Vec<_> = steps.iter().map(|step| step.lacking).collect();
    assert_eq!(lacks, [1, 0, 0]);
    assert_eq!(lacking(&steps[0], there.blobs.get(&steps[0].digest)), [SOURCE]);
    assert!(!plan.is_done());
}

#[test]
fn a_label_key_that_keeps_another_blob_alive_is_left_alone() {
    let there = Labels::from([(
        "containerd.io/gc.ref.content.m.0".to_owned(),
        digest('f').to_string(),
    )]);
    let missing = missing_gc_labels(&[child(ChildKind::Manifest, 'a')], &there);
    assert_eq!(
        missing.keys().collect::<Vec<_>>(),
        ["containerd.io/gc.ref.content.m.1"]
    );
}

#[test]
fn any_gc_label_that_refers_to_the_child_is_enough() {
    let there = Labels::from([(
        "containerd.io/gc.ref.content.7".to_owned(),
        digest('a').to_string(),
    )]);
    assert!(missing_gc_labels(&[child(ChildKind::Manifest, 'a')], &there).is_empty());
    // Keys that only start like a gc label, and keys that containerd 2.2 and 2.3 added. None of
    // them keeps the child.
    for key in [
        "containerd.io/gc.ref.contents",
        "containerd.io/gc.ref.image.0",
        "containerd.io/gc.ref.snapshot.overlayfs",
        "containerd.io/gc.bref.content.m.0",
        "containerd.io/gc.bref.image",
        "containerd.io/gc.cond.snapshot.overlayfs",
        "containerd.io/gc.cond.value-usedat",
    ] {
        let other = Labels::from([(key.to_owned(), digest('a').to_string())]);
        let missing = missing_gc_labels(&[child(ChildKind::Manifest, 'a')], &other);
        assert_eq!(missing.len(), 1, "{key}");
    }
}

#[test]
fn blobs_of_an_image_share_the_labels_that_say_where_they_are_from() {
    let mut image = image("r.test/a:1");
    let record = image.records[0].clone();
    let named = |n: usize| NamedTarget {
        name: format!("host{n:03}.test/a:1"),
        target: Arc::clone(&record.target),
    };
    image.records = (0..256).map(named).collect();
    let plan = plan(&[&image], &Survey::default(), &intent());
    let steps = &plan.images[0].blobs;
    assert_eq!(steps[0].sources.len(), MOST_SOURCES);
    let is_shared = |step: &BlobStep| Arc::ptr_eq(&step.sources, &steps[0].sources);
    assert!(steps.iter().all(is_shared));
}

/// If every pair is compared, this takes a minute.
#[test]
fn the_labels_of_many_children_are_found_in_time_that_grows_with_their_number_only() {
    let children: Vec<Child> = (0..50_000)
        .map(|n| Child {
            kind: ChildKind::Layer,
            digest: format!("sha256:{n:064x}").parse().unwrap(),
        })
        .collect();
    let started = std::time::Instant::now();
    let missing = missing_gc_labels(&children, &Labels::new());
    assert_eq!(missing.len(), 50_000);
    assert!(missing_gc_labels(&children, &missing).is_empty());
    assert!(started.elapsed() < std::time::Duration::from_secs(10));
}

#[test]
fn the_same_layer_twice_is_labelled_once() {
    let twice = [
        child(ChildKind::Layer, '1'),
        child(ChildKind::Layer, '1'),
        child(ChildKind::Layer, '2'),
    ];
    let missing = missing_gc_labels(&twice, &Labels::new());
    assert_eq!(
        missing.keys().collect::<Vec<_>>(),
        [L0, "containerd.io/gc.ref.content.l.2"]
    );
}

#[test]
fn a_record_that_moves_is_shown_to_cri_again() {
    let mut labels = ours();
    labels.insert(CRI_MANAGED.into(), "managed".into());
    let step = plan_record(
        &image("r.test/a:1").records[0],
        Some(&record("r.test/a:1", 'b', labels)),
        &intent(),
    );
    let RecordAction::Retarget { from, labels } = step.action else {
        panic!("{step:?}")
    };
    assert_eq!(from, digest('b'));
    assert_eq!(labels, LabelChanges::from([(CRI_MANAGED.to_owned(), None)]));
}

#[test]
fn a_name_of_somebody_else_follows_the_rule() {
    let taken = record(
        "r.test/a:1",
        'b',
        Labels::from([("theirs".to_owned(), "x".to_owned())]),
    );
    let action = |on_conflict| {
        let intent = Intent {
            on_conflict,
            ..intent()
        };
        plan_record(&image("r.test/a:1").records[0], Some(&taken), &intent).action
    };
    assert!(matches!(
        action(OnConflict::Replace),
        RecordAction::Retarget { .. }
    ));
    assert_eq!(
        action(OnConflict::Keep),
        RecordAction::Conflict {
            with: digest('b'),
            refuse: false
        }
    );
    assert_eq!(
        action(OnConflict::Refuse),
        RecordAction::Conflict {
            with: digest('b'),
            refuse: true
        }
    );
}

#[test]
fn a_name_to_be_left_is_left_and_an_image_of_no_other_name_sends_nothing() {
    let intent = Intent {
        leave: BTreeMap::from([("r.test/a:1".to_owned(), "another bundle has it".to_owned())]),
        ..intent()
    };
    let image = image("r.test/a:1");
    let plan = plan(&[&image], &Survey::default(), &intent);
    assert_eq!(
        plan.images[0].records[0].action,
        RecordAction::Leave("another bundle has it".to_owned())
    );
    assert!(plan.is_done() && plan.images[0].blobs.is_empty());
}

#[test]
fn annotations_alone_do_not_move_a_record() {
    let mut there = record("r.test/a:1", 'a', ours());
    there
        .target
        .set_annotations(Some([("k".to_owned(), "v".to_owned())].into()));
    assert_eq!(
        plan_record(&image("r.test/a:1").records[0], Some(&there), &intent()).action,
        RecordAction::Unchanged
    );
}

#[test]
fn a_blob_of_several_images_is_sent_once() {
    let images = ["r.test/a:1", "r.test/b:1"].map(image);
    let there = survey(Vec::new(), vec![blob('1', &[])]);
    let plan = plan(&[&images[0], &images[1]], &there, &intent());
    assert_eq!(plan.blobs_to_send(), [(&digest('c'), 10), (&digest('a'), 7)]);
    assert_eq!(plan.bytes_to_send(), 17);
}

#[test]
fn small_images_go_first() {
    let small = image("r.test/small:1");
    let mut large = image("r.test/large:1");
    large.closure.blobs.insert(0, leaf('9', 1_000_000));
    let plan = plan(&[&large, &small], &Survey::default(), &intent());
    assert_eq!(
        plan.images.iter().map(|image| image.index).collect::<Vec<_>>(),
        [1, 0]
    );
    assert_eq!(plan.bytes_to_send(), 1_000_117);
}

#[test]
fn images_of_earlier_patterns_go_first_by_any_of_their_names() {
    let mut large = image("r.test/pause:3");
    large.closure.blobs.insert(0, leaf('9', 1_000_000));
    let mut aliased = image("r.test/dns:1");
    aliased.records.push(NamedTarget {
        name: "mirror.test/coredns:1".into(),
        target: descriptor('a').into(),
    });
    let other = image("r.test/app:1");
    let intent = Intent {
        priority: ["*/pause:*", "*/coredns:*"]
            .map(|text| text.parse().unwrap())
            .into(),
        ..intent()
    };
    let plan = plan(&[&other, &aliased, &large], &Survey::default(), &intent);
    let order: Vec<_> = plan.images.iter().map(|image| image.index).collect();
    assert_eq!(order, [2, 1, 0]);
}

#[test]
fn a_plan_has_a_line_for_each_kind_of_step() {
    let there = |name: &str, labels| record(name, 'b', labels);
    let relabelled = record("r.test/label:1", 'a', Labels::new());
    let records = [
        record("r.test/keep:1", 'a', ours()),
        relabelled,
        there("r.test/move:1", ours()),
        there("r.test/theirs:1", Labels::new()),
    ];
    let mut image = image("r.test/new:1");
    let target = Arc::clone(&image.records[0].target);
    let named = |name: &str| NamedTarget {
        name: name.into(),
        target: Arc::clone(&target),
    };
    let others = ["keep", "label", "move", "theirs", "left"];
    image
        .records
        .extend(others.iter().map(|name| named(&format!("r.test/{name}:1"))));
    let intent = Intent {
        on_conflict: OnConflict::Keep,
        leave: BTreeMap::from([("r.test/left:1".to_owned(), "another bundle has it".to_owned())]),
        ..intent()
    };
    let mut plan = plan(&[&image], &survey(records.into(), whole()), &intent);
    plan.images[0].unpack = true;
    plan.images[0].blobs[1].action = BlobAction::Send;
    let mut again = plan.images[0].clone();
    again.records.clear();
    again.unpack = false;
    plan.images.push(again);
    let [one, c, a, b] = ['1', 'c', 'a', 'b'].map(digest);
    let (lacks, mut lines) = (plan.images[0].blobs[0].lacking, Vec::new());
    assert!(lacks > 0, "it is also in other repositories");
    let labels = basics::counted(lacks, "label");
    lines.push("r.test/new:1 (linux/amd64)".to_owned());
    lines.push(format!("  present {one} 100 B, {labels}"));
    lines.push(format!("  send    {c} 10 B, {labels}"));
    lines.push(format!("  present {a} 7 B, {labels}"));
    lines.push("  unpack  its layers".to_owned());
    lines.push(format!("  create  r.test/new:1 -> {a}"));
    lines.push(format!("  keep    r.test/keep:1 -> {a}"));
    let source = intent.source.label().0;
    lines.push(format!(
        "  label   r.test/label:1: +{source} +io.airgapd.pinned +io.cri-containerd.pinned"
    ));
    lines.push(format!("  move    r.test/move:1 from {b} -> {a}"));
    lines.push(format!(
        "  leave   r.test/theirs:1: it belongs to another program, {b}"
    ));
    lines.push("  leave   r.test/left:1: another bundle has it".to_owned());
    lines.push("(no record) (linux/amd64)".to_owned());
    lines.push(format!("  present {one} 100 B, {labels}"));
    lines.push(format!("  shared  {c} 10 B, {labels}"));
    lines.push(format!("  present {a} 7 B, {labels}"));
    assert_eq!(plan.to_string().lines().collect::<Vec<_>>(), lines);
    let none = &mut plan.images[0].blobs[0];
    none.lacking = 0;
    assert!(plan.to_string().contains(&format!("present {one} 100 B\n")));
    let moved = RecordStep {
        name: "r.test/a:1".into(),
        target,
        action: RecordAction::Relabel(LabelChanges::from([("x".to_owned(), None)])),
    };
    assert_eq!(moved.to_string(), "label   r.test/a:1: -x");
}

#[test]
fn gc_labels_are_numbered_by_kind_as_containerd_numbers_them() {
    use ChildKind::{Config, Layer, Manifest, Other};
    let kinds = [Manifest, Layer, Config, Other].into_iter().cycle();
    let children: Vec<Child> = kinds
        .zip('1'..='8')
        .map(|(kind, fill)| child(kind, fill))
        .collect();
    let wanted = [
        ("m.0", '1'),
        ("l.0", '2'),
        ("config", '3'),
        ("0", '4'),
        ("m.1", '5'),
        ("l.1", '6'),
        ("config1", '7'),
        ("1", '8'),
    ];
    let wanted = wanted.map(|(key, fill)| {
        let key = format!("containerd.io/gc.ref.content.{key}");
        (key, digest(fill).to_string())
    });
    assert_eq!(missing_gc_labels(&children, &Labels::new()), Labels::from(wanted));
}

#[test]
fn a_target_is_the_same_by_digest_type_and_size() {
    let same = descriptor('a');
    let image = image("r.test/a:1");
    let other_type = Descriptor::new(MediaType::ImageIndex, 7, digest('a'));
    let other_size = Descriptor::new(MediaType::ImageManifest, 8, digest('a'));
    for (target, is_moved) in [
        (same, false),
        (descriptor('b'), true),
        (other_type, true),
        (other_size, true),
    ] {
        let there = ImageRecord {
            target: target.clone(),
            ..record("r.test/a:1", 'a', ours())
        };
        let action = plan_record(&image.records[0], Some(&there), &intent()).action;
        let is_retarget = matches!(action, RecordAction::Retarget { .. });
        assert_eq!(is_retarget, is_moved, "{target:?}: {action:?}");
        assert_eq!(action.writes(), is_moved);
    }
}

#[test]
fn a_blob_is_said_to_be_from_as_many_repositories_as_there_is_room_for() {
    for (count, wanted) in [
        (1, 1),
        (MOST_SOURCES, MOST_SOURCES),
        (MOST_SOURCES + 4, MOST_SOURCES),
    ] {
        let images: Vec<Taken> = (0..count).map(|n| image(&format!("r.test/{n:02}:1"))).collect();
        let images: Vec<&Taken> = images.iter().collect();
        let plan = plan(&images, &Survey::default(), &intent());
        let paths = &plan.images[0].blobs[0].sources[SOURCE];
        assert_eq!(paths.split(',').count(), wanted, "of {count}");
        assert!(paths.starts_with("00"), "{paths}");
    }
}

#[test]
fn records_that_are_made_are_counted_once() {
    let images = ["r.test/a:1", "r.test/a:1", "r.test/b:1", "r.test/there:1"].map(image);
    let images: Vec<&Taken> = images.iter().collect();
    let there = survey(vec![record("r.test/there:1", 'b', ours())], Vec::new());
    assert_eq!(plan(&images, &there, &intent()).new_records(), 2);
}

#[test]
fn an_image_is_done_when_no_blob_and_no_record_of_it_has_to_be_written() {
    let image = image("r.test/a:1");
    let there = |labels, blobs| survey(vec![record("r.test/a:1", 'a', labels)], blobs);
    for (there, is_done) in [
        (there(ours(), whole()), true),
        (there(Labels::new(), whole()), false),
        (there(ours(), whole()[1..].to_vec()), false),
        (survey(Vec::new(), whole()), false),
    ] {
        let plan = plan(&[&image], &there, &intent());
        assert_eq!(plan.is_done(), is_done, "{plan}");
        assert_eq!(plan.images[0].is_done(), is_done);
    }
}

#[test]
fn an_image_is_unpacked_if_that_is_wanted_and_was_not_done_by_the_same_snapshotter() {
    let image = image("r.test/a:1");
    let snapshotter = containerd::Snapshotter {
        name: "overlayfs".to_owned(),
        root: None,
        rebases: false,
    };
    let unpacker = Unpacker::new(snapshotter, platforms::Matcher::all());
    let wanted = Intent {
        unpack: Some((unpacker, UnpackWhen::AfterRecords)),
        ..intent()
    };
    let left = Intent {
        leave: BTreeMap::from([("r.test/a:1".to_owned(), "another bundle has it".to_owned())]),
        ..wanted.clone()
    };
    let chain = digest('f').to_string();
    let unpacked_by = |snapshotter: &str, has_snapshot: bool| {
        let mut blobs = whole();
        let key = format!("containerd.io/gc.ref.snapshot.{snapshotter}");
        blobs[1].labels.insert(key, chain.clone());
        let snapshots = has_snapshot.then(|| chain.clone());
        Survey {
            snapshots: snapshots.into_iter().collect(),
            ..survey(Vec::new(), blobs)
        }
    };
    let table = [
        ("nothing is there", Survey::default(), &wanted, true),
        ("it was done", unpacked_by("overlayfs", true), &wanted, false),
        (
            "the snapshot is gone",
            unpacked_by("overlayfs", false),
            &wanted,
            true,
        ),
        ("another one did it", unpacked_by("native", true), &wanted, true),
        ("unpacking is off", Survey::default(), &intent(), false),
        ("its names are left to others", Survey::default(), &left, false),
    ];
    for (case, there, intent, unpacks) in table {
        let plan = plan(&[&image], &there, intent);
        assert_eq!(plan.images[0].unpack, unpacks, "{case}");
    }
}
