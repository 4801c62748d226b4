//! The limits on a bundle: each has its own error, and every real bundle fits.

use crate::common::*;
use airgapd_bundle::fixtures::{Archive, Image, Layout};
use airgapd_bundle::{Fault, Limits};

#[test]
fn the_names_of_one_image_are_bounded_however_its_entries_share_them() {
    let named = |count: usize| {
        let image = Image::new("r.test/a:0").platform("linux/amd64").layer(b"x");
        (1..count).fold(image, |image, n| image.repo_tag(&format!("r.test/a:{n}")))
    };
    let in_one = |count| Layout::docker().image(named(count)).build();
    let in_many = |count: usize| {
        let entry = |n: usize| {
            Image::new(&format!("r.test/a:{n}"))
                .platform("linux/amd64")
                .layer(b"x")
        };
        (0..count)
            .fold(Layout::new(), |layout, n| layout.image(entry(n)))
            .build()
    };
    for make in [&in_one as &dyn Fn(usize) -> Archive, &in_many] {
        good(&make(256));
        match refused(&make(257)) {
            fault @ Fault::Limit { limit: 256, .. } => {
                let text = fault.to_string();
                assert!(
                    text.starts_with("more than 256 names of one image: sha256:"),
                    "{text}"
                );
                assert!(text.ends_with(" has 257 (`limits.names` is 256)"), "{text}");
            }
            fault => panic!("{fault}"),
        }
    }
}

#[test]
fn a_sound_bundle_of_5000_images_is_taken() {
    let image = |n: usize| {
        Image::new(&format!("r.test/i{n}:1"))
            .platform("linux/amd64")
            .layer(n.to_string())
    };
    let archive = (0..5000)
        .fold(Layout::new(), |layout, n| layout.image(image(n)))
        .build();
    assert_eq!(good(&archive).catalog().images.len(), 5000);
}

/// A document that is too large, or an index that is nested too deeply, affects only its image.
#[test]
fn the_limits_on_a_single_image_name_their_keys_too() {
    let image = Image::new("a:1").in_an_index().platform("linux/amd64");
    let image = (0..8).fold(image, |image, layer| image.layer(format!("{layer}")));
    let nested = Layout::new().image(image).build();
    let manifest = nested.name_of(&nested.images[0].manifests[0].digest);
    let size = nested.bytes_of(&manifest).len() as u64;
    let rows = [
        (
            Limits {
                index_depth: 0,
                ..Limits::default()
            },
            "is nested deeper than 0 levels (`limits.indexDepth` is 0)".to_owned(),
        ),
        (
            Limits {
                json_document: size - 1,
                ..Limits::default()
            },
            format!(
                "has {size} bytes, more than {0} (`limits.jsonDocument` is {0})",
                size - 1
            ),
        ),
    ];
    for (limits, expected) in rows {
        let bundle = open_within(&nested.to_bytes(), &limits).expect("the fault affects one image");
        let root = &only_image(&bundle).root;
        let reason = match &root.content {
            airgapd_bundle::Content::Index(children) => broken(&children[0]),
            _ => broken(root),
        };
        assert!(reason.contains(&expected), "{reason}");
    }
}

#[test]
fn limits_are_errors_of_their_own() {
    let image = |name: &str| Image::new(name).platform("linux/amd64").layer(name.as_bytes());
    let archive = Layout::new().image(image("a:1")).image(image("b:1")).build();
    let docker = Layout::docker().image(image("a:1")).image(image("b:1")).build();
    let mut long_name = archive.clone();
    long_name.add(&"x".repeat(300), "x".to_owned());
    let generous = Limits::default();
    let rows = [
        (
            &archive,
            Limits {
                entries: 7,
                ..generous.clone()
            },
            "more than 7 entries (`limits.entries` is 7)",
        ),
        (
            &archive,
            Limits {
                images: 1,
                ..generous.clone()
            },
            "more than 1 images in index.json: there are 2 (`limits.images` is 1)",
        ),
        (
            &docker,
            Limits {
                images: 1,
                ..generous.clone()
            },
            "more than 1 images in manifest.json: there are 2 (`limits.images` is 1)",
        ),
        (
            &archive,
            Limits {
                descriptors: 5,
                ..generous.clone()
            },
            "more than 5 descriptors in all images together (`limits.descriptors` is 5)",
        ),
        (
            &docker,
            Limits {
                descriptors: 5,
                ..generous.clone()
            },
            "more than 5 descriptors in all images together (`limits.descriptors` is 5)",
        ),
        (
            &archive,
            Limits {
                json_document: 200,
                ..generous.clone()
            },
            "more than 200 bytes in index.json (`limits.jsonDocument` is 200)",
        ),
        (
            &docker,
            Limits {
                json_document: 200,
                ..generous.clone()
            },
            "more than 200 bytes in manifest.json (`limits.jsonDocument` is 200)",
        ),
        (
            &long_name,
            Limits {
                extended_header: 200,
                ..generous.clone()
            },
            "(`limits.extendedHeader` is 200)",
        ),
    ];
    for (archive, limits, expected) in rows {
        let error = open_within(&archive.to_bytes(), &limits).unwrap_err();
        assert!(matches!(error.fault, Fault::Limit { .. }), "{error}");
        assert!(error.to_string().contains(expected), "{error}");
        open(&archive.to_bytes()).unwrap();
    }
}
