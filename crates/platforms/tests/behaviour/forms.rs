//! The text form and the JSON form.

use airgapd_platforms::{Platform, host};

use crate::{raw, with_features, with_version};

fn parsed(text: &str) -> Platform {
    text.parse().unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn texts_are_read_as_containerd_reads_them() {
    for (text, os, architecture, variant) in [
        ("linux/amd64", "linux", "amd64", ""),
        ("linux/x86_64", "linux", "amd64", ""),
        ("Linux/X86-64", "linux", "amd64", ""),
        ("linux/amd64/v1", "linux", "amd64", ""),
        ("linux/amd64/v3", "linux", "amd64", "v3"),
        ("linux/i386", "linux", "386", ""),
        ("linux/arm", "linux", "arm", ""),
        ("linux/arm/v7", "linux", "arm", "v7"),
        ("linux/arm/7", "linux", "arm", "v7"),
        ("linux/armhf", "linux", "arm", ""),
        ("linux/armel", "linux", "arm", "v6"),
        ("linux/arm64", "linux", "arm64", ""),
        ("linux/arm64/v8", "linux", "arm64", "v8"),
        ("linux/aarch64/8", "linux", "arm64", "v8"),
        // The matcher's rules decide later if this is v8.
        ("linux/arm64/v8.0", "linux", "arm64", "v8.0"),
        ("linux/arm64/v9.2", "linux", "arm64", "v9.2"),
        ("macOS/arm64", "darwin", "arm64", ""),
        ("windows/amd64", "windows", "amd64", ""),
        ("beos/z80/turbo", "beos", "z80", "turbo"),
        ("unknown/unknown", "unknown", "unknown", ""),
        // A single architecture means Linux.
        ("arm64", "linux", "arm64", ""),
        ("aarch64", "linux", "arm64", ""),
        ("amd64", "linux", "amd64", ""),
        ("x86_64", "linux", "amd64", ""),
        ("386", "linux", "386", ""),
        ("arm", "linux", "arm", ""),
        ("armel", "linux", "arm", "v6"),
        ("s390x", "linux", "s390x", ""),
    ] {
        assert_eq!(parsed(text), Platform::new(os, architecture, variant), "{text}");
    }
}

#[test]
fn a_single_system_means_the_architecture_of_this_machine() {
    for (text, os) in [("linux", "linux"), ("MacOS", "darwin"), ("windows", "windows")] {
        let platform = parsed(text);
        assert_eq!(platform.os, os);
        assert_eq!(platform.architecture, host().architecture);
    }
    assert_eq!(
        parsed("windows(10.0.17763)").os_version.as_deref(),
        Some("10.0.17763")
    );
}

#[test]
fn versions_and_features_stand_in_parentheses() {
    for (text, version, features) in [
        ("windows(10.0.17763)/amd64", Some("10.0.17763"), vec![]),
        (
            "windows(10.0.17763+win32k)/amd64",
            Some("10.0.17763"),
            vec!["win32k"],
        ),
        ("windows(+b+a)/amd64", None, vec!["b", "a"]),
        ("windows()/amd64", None, vec![]),
        ("windows(1%2B2+x%25%2f)/amd64", Some("1+2"), vec!["x%/"]),
    ] {
        let platform = parsed(text);
        assert_eq!(platform.os_version.as_deref(), version, "{text}");
        assert_eq!(platform.os_features, features, "{text}");
        assert_eq!(
            (platform.os.as_str(), platform.architecture.as_str()),
            ("windows", "amd64")
        );
    }
}

#[test]
fn what_is_no_platform_is_refused_with_the_text_and_the_reason() {
    for (text, reason) in [
        ("", "is empty"),
        ("linux/*", "wildcard"),
        ("*", "wildcard"),
        ("linux/arm/v7/extra", "more than three parts"),
        ("linux/arm/v7/", "more than three parts"),
        ("linux/", "part \"\""),
        ("linux//v8", "part \"\""),
        ("linux/arm64/", "part \"\""),
        ("/arm64", "where an operating system is expected"),
        ("/", "where an operating system is expected"),
        (" linux/arm64", "where an operating system is expected"),
        ("linux.1/amd64", "where an operating system is expected"),
        ("linux/arm64 ", "part \"arm64 \""),
        ("linux/arm64\n", "part \"arm64\\n\""),
        ("linux/árm64", "part \"árm64\""),
        ("lınux/amd64", "where an operating system is expected"),
        ("linux/amd64\0", "part \"amd64\\0\""),
        ("linux\u{202e}/amd64", "where an operating system is expected"),
        ("linux,arm64", "where an operating system is expected"),
        (
            "toaster",
            "neither a known operating system nor a known architecture",
        ),
        (
            "armv7l",
            "neither a known operating system nor a known architecture",
        ),
        (
            "amd64(1.0)",
            "neither a known operating system nor a known architecture",
        ),
        ("windows(10/amd64", "in parentheses"),
        ("windows(10)x/amd64", "in parentheses"),
        ("windows(1 0)/amd64", "in parentheses"),
        ("windows(+)/amd64", "in parentheses"),
        ("windows(1++a)/amd64", "in parentheses"),
        ("windows(%)/amd64", "in parentheses"),
        ("windows(%4)/amd64", "in parentheses"),
        ("windows(%zz)/amd64", "in parentheses"),
        ("windows(%ff)/amd64", "in parentheses"),
        ("(1.0)/amd64", "where an operating system is expected"),
    ] {
        let error = match text.parse::<Platform>() {
            Ok(platform) => panic!("{text:?} was read as {platform}"),
            Err(error) => error.to_string(),
        };
        assert!(error.starts_with(&format!("platform {text:?} ")), "{error}");
        assert!(error.contains(reason), "{error} should contain {reason}");
        assert!(error.contains("for example linux/arm64"), "{error}");
    }
}

#[test]
fn a_huge_text_is_not_repeated_whole() {
    for huge in [
        "é".repeat(1_000_000),
        "/".repeat(1_000_000),
        format!("linux/{}", "é".repeat(1_000_000)),
    ] {
        let error = huge.parse::<Platform>().unwrap_err().to_string();
        assert!(error.len() < 1000, "{} bytes", error.len());
    }
}

#[test]
fn platforms_are_written_with_aliases_resolved() {
    for (platform, text) in [
        (raw("linux/amd64"), "linux/amd64"),
        (raw("linux/aarch64/v8"), "linux/arm64"),
        (raw("linux/arm"), "linux/arm/v7"),
        (raw("linux/arm64/v9.2"), "linux/arm64/v9.2"),
        (Platform::new("", "x86_64", ""), "linux/amd64"),
        (Platform::default(), "linux/unknown"),
        (Platform::new("unknown", "unknown", ""), "unknown/unknown"),
        (with_version(raw("windows/amd64"), "10.0.1"), "windows/amd64"),
    ] {
        assert_eq!(platform.to_string(), text);
    }
}

#[test]
fn the_long_form_has_version_and_features() {
    let platform = with_features(with_version(raw("windows/amd64"), "10.0.1"), &["win32k", "a+b"]);
    assert_eq!(format!("{platform:#}"), "windows(10.0.1+win32k+a%2Bb)/amd64");
    assert_eq!(format!("{:#}", raw("linux/arm64/v8")), "linux/arm64");
}

#[test]
fn control_characters_from_an_archive_do_not_reach_the_log() {
    let hostile = Platform::new("linux\n", "amd64\x1b[31m", "v\u{202e}8");
    assert_eq!(hostile.to_string(), "linux\\n/amd64\\u{1b}[31m/v\\u{202e}8");
}

#[test]
fn json_has_the_keys_of_the_image_spec() {
    let json = r#"{"os":"windows","architecture":"amd64","variant":"v2","os.version":"10.0.1","os.features":["win32k"]}"#;
    let platform: Platform = serde_json::from_str(json).unwrap();
    assert_eq!(platform.variant.as_deref(), Some("v2"));
    assert_eq!(platform.os_version.as_deref(), Some("10.0.1"));
    assert_eq!(platform.os_features, ["win32k"]);
    assert_eq!(serde_json::to_string(&platform).unwrap(), json);
    assert_eq!(
        serde_json::to_string(&raw("linux/arm64")).unwrap(),
        r#"{"os":"linux","architecture":"arm64"}"#
    );
}

#[test]
fn absent_null_and_empty_json_values_are_the_same() {
    for json in [
        "{}",
        r#"{"os":null,"architecture":null,"variant":null,"os.version":null,"os.features":null}"#,
        r#"{"os":"","architecture":"","variant":"","os.version":"","os.features":[]}"#,
        r#"{"created":"2024-01-01T00:00:00Z","config":{"Env":[]},"rootfs":{"type":"layers"}}"#,
    ] {
        assert_eq!(
            serde_json::from_str::<Platform>(json).unwrap(),
            Platform::default(),
            "{json}"
        );
    }
}

#[test]
fn json_of_another_shape_is_an_error() {
    for json in [
        "null",
        "\"linux/arm64\"",
        r#"{"os":1}"#,
        r#"{"os.features":"win32k"}"#,
        r#"{"variant":[]}"#,
    ] {
        assert!(serde_json::from_str::<Platform>(json).is_err(), "{json}");
    }
}
