//! The limits on a bundle: an error of its own for each, and room for any real bundle.

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
            Fault::Limit { what, limit: 256 } => {
                assert!(what.starts_with("names of one image: sha256:"), "{what}");
                assert!(what.ends_with(" has 257 (limits.names)"), "{what}");
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
            "more than 7 entries",
        ),
        (
            &archive,
            Limits {
                images: 1,
                ..generous.clone()
            },
            "more than 1 images in index.json: there are 2 (limits.images)",
        ),
        (
            &docker,
            Limits {
                images: 1,
                ..generous.clone()
            },
            "more than 1 images in manifest.json: there are 2 (limits.images)",
        ),
        (
            &archive,
            Limits {
                descriptors: 5,
                ..generous.clone()
            },
            "more than 5 descriptors",
        ),
        (
            &docker,
            Limits {
                descriptors: 5,
                ..generous.clone()
            },
            "more than 5 descriptors",
        ),
        (
            &archive,
            Limits {
                json_document: 200,
                ..generous.clone()
            },
            "more than 200 bytes in index.json",
        ),
        (
            &docker,
            Limits {
                json_document: 200,
                ..generous.clone()
            },
            "more than 200 bytes in manifest.json",
        ),
        (
            &long_name,
            Limits {
                extended_header: 200,
                ..generous.clone()
            },
            "more than 200 bytes in an extended header",
        ),
    ];
    for (archive, limits, expected) in rows {
        let error = open_within(&archive.to_bytes(), &limits).unwrap_err();
        assert!(matches!(error.fault, Fault::Limit { .. }), "{error}");
        assert!(error.to_string().contains(expected), "{error}");
        open(&archive.to_bytes()).unwrap();
    }
}
