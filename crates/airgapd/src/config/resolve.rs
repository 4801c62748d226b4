//! From the operator's values to settings, and the changes of a reload.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use node::settings::{Reloaded, Settings};

use super::environment::variable_of_key;
use super::keys::{GROUPS, KEYS, Key, Removed, UNTIL_RESTART, key};
use super::{Config, Given, Mistake, Mistakes, Place};

/// Makes settings from the given values. Of several values for a key, the strongest origin wins,
/// but all values are checked.
///
/// # Errors
///
/// Returns all mistakes, in the order of the values.
pub(super) fn resolve(given: Vec<Given>) -> Result<Config, Mistakes> {
    let mut config = Config {
        settings: Settings::default(),
        origins: BTreeMap::new(),
        file: None,
        removed: Vec::new(),
    };
    let mut mistakes = Vec::new();
    let mut images_dirs_at = None;
    for given in given {
        if given.key == "imagesDirs" {
            images_dirs_at = Some(given.place.clone());
        }
        if let Some(removed) = Removed::of(&given.key) {
            config.removed.push(Mistake {
                place: given.place,
                what: format!(
                    "`{}` was removed and has no effect: {}",
                    removed.name, removed.instead
                ),
                key: Some(given.key),
            });
            continue;
        }
        let origin = given.place.origin();
        let result = match key(&given.key) {
            // A stronger origin overrides this value, but it is still checked.
            Some(known)
                if config
                    .origins
                    .get(known.name)
                    .is_some_and(|stronger| *stronger > origin) =>
            {
                given.put(known, &mut Settings::default())
            }
            Some(known) => {
                config.origins.insert(known.name, origin);
                given.put(known, &mut config.settings)
            }
            None => Err(not_a_key(&given.key)),
        };
        if let Err(what) = result {
            mistakes.push(Mistake {
                place: given.place,
                key: Some(given.key),
                what,
            });
        }
    }
    mistakes.extend(choose_folders(&mut config, images_dirs_at));
    if mistakes.is_empty() {
        Ok(config)
    } else {
        Err(Mistakes(mistakes))
    }
}

/// Keeps one of `imagesDir` and `imagesDirs`: that of the stronger origin. Returns a mistake if
/// both have the same origin.
fn choose_folders(config: &mut Config, place: Option<Place>) -> Option<Mistake> {
    let settings = &mut config.settings;
    if settings.images_dir.is_none() || settings.images_dirs.is_empty() {
        return None;
    }
    let origin = |key| config.origins.get(key);
    match origin("imagesDir").cmp(&origin("imagesDirs")) {
        Ordering::Less => settings.images_dir = None,
        Ordering::Greater => settings.images_dirs = Vec::new(),
        Ordering::Equal => {
            return Some(Mistake {
                place: place?,
                key: Some("imagesDirs".to_owned()),
                what: "has the first folder in it: leave out `imagesDir`".to_owned(),
            });
        }
    }
    None
}

fn not_a_key(key: &str) -> String {
    let plain = |text: &str| text.replace(['_', '-', '.'], "").to_ascii_lowercase();
    let alike = KEYS
        .iter()
        .find(|known| plain(known.name) == plain(key) || plain(&variable_of_key(known.name)) == plain(key));
    let group = GROUPS
        .contains(&key)
        .then(|| format!("is a group of keys, such as `{}`", member_of(key)));
    match (group, alike) {
        (Some(group), _) => group,
        (None, Some(known)) => format!("there is no such key: did you mean `{}`?", known.name),
        // A newer version may have this key: after a rollback the file is still for that version.
        (None, None) => format!("airgapd {} has no such key", env!("CARGO_PKG_VERSION")),
    }
}

fn member_of(group: &str) -> &'static str {
    let prefix = format!("{group}.");
    KEYS.iter()
        .find_map(|key| key.name.strip_prefix(&prefix))
        .unwrap_or_default()
}

/// Replaces old settings by new settings. Keys that need a restart keep their old values.
pub(crate) fn reload(old: &Settings, new: Settings) -> Reloaded {
    let differs = |key: &&Key| (key.show)(old) != (key.show)(&new);
    let changed: Vec<&'static Key> = KEYS.iter().filter(differs).collect();
    let (postponed, applied): (Vec<_>, Vec<_>) = changed
        .into_iter()
        .partition(|key| UNTIL_RESTART.contains(&key.name));
    let mut settings = new;
    for key in &postponed {
        (key.copy)(&mut settings, old);
    }
    let names = |keys: Vec<&'static Key>| keys.into_iter().map(|key| key.name).collect();
    Reloaded {
        settings,
        applied: names(applied),
        postponed: names(postponed),
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};
    use std::time::Duration;

    use import::names::DigestReferences;
    use node::place::Distribution;
    use node::settings::{Checksums, LogLevel, OnRemoval, PlatformChoice, Signatures};

    use super::super::environment::key_of_variable;
    use super::super::file::from_yaml;
    use super::super::{Flag, Typed};
    use super::*;

    fn file(text: &str) -> Result<Config, Vec<String>> {
        let mut mistakes = Vec::new();
        let given = from_yaml(Path::new("c.yaml"), text, &mut mistakes);
        let resolved = resolve(given);
        let more = resolved
            .as_ref()
            .err()
            .map(|more| more.0.clone())
            .unwrap_or_default();
        match resolved {
            Ok(config) if mistakes.is_empty() => Ok(config),
            _ => Err(mistakes.iter().chain(&more).map(ToString::to_string).collect()),
        }
    }

    fn settings(text: &str) -> Settings {
        file(text).unwrap().settings
    }

    #[test]
    fn the_annotated_file_has_every_key_with_its_default_and_no_other() {
        let text = include_str!("../../../../config/config.yaml");
        let mut mistakes = Vec::new();
        let given = from_yaml(Path::new("config.yaml"), text, &mut mistakes);
        assert_eq!(mistakes, []);
        let keys: Vec<_> = given.iter().map(|given| given.key.clone()).collect();
        let known: Vec<_> = KEYS.iter().map(|key| key.name).collect();
        assert_eq!(keys, known, "the same keys in the same order");
        let first = ["imagesDir", "address", "minFree", "onRemoval", "unpack"];
        assert_eq!(keys[..5], first, "the keys that most nodes change");

        let written = |given: &Given| match &given.value {
            Typed::Written(value) => value.clone(),
            Typed::Flag(flag) => panic!("a file has no flag {flag:?}"),
        };
        let written: Vec<_> = given.iter().map(written).collect();
        let config = resolve(given).unwrap();
        assert_eq!(config.settings, Settings::default());
        let shown: Vec<_> = config.rows().into_iter().map(|row| row.value).collect();
        assert_eq!(written, shown, "values look as `airgapd config` shows them");
    }

    #[test]
    fn the_annotated_file_names_the_variable_of_every_key() {
        let text = include_str!("../../../../config/config.yaml");
        assert!(text.contains("AIRGAPD_"));
        for key in KEYS {
            assert_eq!(key_of_variable(&variable_of_key(key.name)), key.name);
        }
    }

    #[test]
    fn nothing_typed_gives_the_defaults() {
        for text in ["", "# only a comment\n", "---\n", "log:\nlimits:\n"] {
            assert_eq!(settings(text), Settings::default(), "{text:?}");
        }
    }

    #[test]
    fn values_of_every_kind_are_read() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let text = format!(
            "distribution: k3s\ndataDir: /data\naddress: unix:///run/x.sock\ncri: false\n\
             platforms: [linux/arm64, linux/amd64]\nresync: 1h 30m\ngrace: 0s\nonRemoval: keep\n\
             aliases: [a.io/x=b.io/y]\nnames: {{{digest}: busybox}}\nbaseName: registry.local/app\n\
             digestReferences: none\nallowedNames: ['*/app:?']\npriority: ['*/dns:*']\nchecksums: off\ntrustedDigests: /etc/trusted\nsignatures: require\ntrustedKeys: /etc/keys\nlimits:\n  jsonDocument: 1 MiB\n  images: 7\nlog: {{level: debug}}\n"
        );
        let settings = settings(&text);
        assert_eq!(settings.distribution, Some(Distribution::K3s));
        assert_eq!(settings.data_dir, Some("/data".into()));
        assert_eq!(settings.address, Some("/run/x.sock".into()));
        assert_eq!(settings.cri, Some(false));
        assert!(matches!(&settings.platforms, PlatformChoice::These(platforms) if platforms.len() == 2));
        assert_eq!(
            (settings.resync, settings.grace),
            (Duration::from_secs(5400), Duration::ZERO)
        );
        assert_eq!(settings.on_removal, OnRemoval::Keep);
        assert_eq!(
            (settings.aliases[0].from.as_str(), settings.aliases[0].to.as_str()),
            ("a.io/x", "b.io/y")
        );
        assert_eq!(
            settings.names[&digest].to_string(),
            "docker.io/library/busybox:latest"
        );
        assert_eq!(settings.base_name.as_deref(), Some("registry.local/app"));
        assert_eq!(settings.digest_references, DigestReferences::None);
        assert_eq!(settings.allowed_names, ["*/app:?".parse().unwrap()]);
        assert_eq!(settings.priority, ["*/dns:*".parse().unwrap()]);
        assert_eq!(settings.checksums, Checksums::Off);
        assert_eq!(settings.trusted_digests, Some("/etc/trusted".into()));
        assert_eq!(settings.signatures, Some(Signatures::Require));
        assert_eq!(settings.trusted_keys, PathBuf::from("/etc/keys"));
        assert_eq!(
            (settings.limits.json_document, settings.limits.images),
            (1 << 20, 7)
        );
        assert_eq!(settings.log.level, LogLevel::Debug);
    }

    #[test]
    fn images_folders_are_read_in_one_spelling_and_each_mistake_is_named() {
        let read = |text: &str| settings(text).images_dirs;
        let wanted = [PathBuf::from("/data/images"), PathBuf::from("/usr/share/images")];
        assert_eq!(read("imagesDirs: [/data//images/, /usr/./share/images]"), wanted);
        assert_eq!(read("imagesDirs: '/data/images, /usr/share/images'"), wanted);
        assert_eq!(read("imagesDirs: []"), Vec::<PathBuf>::new());
        let numbered = |count: usize| {
            let folders: Vec<String> = (0..count).map(|number| format!("/images/{number}")).collect();
            format!("imagesDirs: [{}]", folders.join(", "))
        };
        assert_eq!(read(&numbered(16)).len(), 16);
        let table = [
            ("imagesDirs: [/a, /b/, /b]".to_owned(), "/b is there twice"),
            (
                "imagesDirs: [/a/b, /a]".to_owned(),
                "/a/b is below /a: name one of them",
            ),
            (
                "imagesDirs: [/a, b]".to_owned(),
                "expects an absolute path, got \"b\"",
            ),
            (numbered(17), "expects at most 16 folders, got 17"),
            (
                "imagesDir: /a\nimagesDirs: [/a, /b]".to_owned(),
                "has the first folder in it: leave out `imagesDir`",
            ),
        ];
        for (text, wanted) in table {
            let mistakes = file(&text).unwrap_err();
            assert_eq!(mistakes.len(), 1, "{text}: {mistakes:?}");
            assert!(
                mistakes[0].ends_with(&format!("imagesDirs: {wanted}")),
                "{mistakes:?}"
            );
        }
    }

    #[test]
    fn of_one_folder_and_several_the_stronger_origin_wins() {
        let with = |text: &str, flag: Option<Flag>| {
            let mut mistakes = Vec::new();
            let mut given = from_yaml(Path::new("c.yaml"), text, &mut mistakes);
            given.extend(flag.map(Given::from));
            let settings = resolve(given).unwrap().settings;
            (settings.images_dir, settings.images_dirs)
        };
        let flag = || Some(Flag::ImagesDir("/flag".into()));
        let one = (Some(PathBuf::from("/flag")), Vec::new());
        assert_eq!(with("imagesDirs: [/a, /b]", flag()), one);
        assert_eq!(with("imagesDir: /a", flag()), one);
        let variable = Given {
            key: "imagesDirs".to_owned(),
            value: Typed::Written("/x,/y".into()),
            place: Place::Variable("AIRGAPD_IMAGES_DIRS".to_owned()),
        };
        let mut mistakes = Vec::new();
        let mut given = from_yaml(Path::new("c.yaml"), "imagesDir: /a", &mut mistakes);
        given.push(variable);
        let settings = resolve(given).unwrap().settings;
        assert_eq!(settings.images_dir, None);
        assert_eq!(settings.images_dirs, [PathBuf::from("/x"), PathBuf::from("/y")]);
    }

    #[test]
    fn a_rate_is_read_in_every_way_it_may_be_typed() {
        let table = [
            ("", None),
            ("rateLimit: ~", None),
            ("rateLimit: 0", None),
            ("rateLimit: '0'", None),
            ("rateLimit: 50MiB", Some(50 << 20)),
            ("rateLimit: 1048576", Some(1 << 20)),
            ("rateLimit: 2 GiB", Some(2 << 30)),
        ];
        for (text, rate) in table {
            assert_eq!(settings(text).rate_limit, rate, "{text}");
        }
    }

    #[test]
    fn a_removed_key_is_told_of_once_with_its_place_and_changes_nothing() {
        let table = [
            (
                "resync: 10m\npressure:\n  io: 40%\n  memory: 50%\n",
                "c.yaml:2: pressure: ",
            ),
            ("pressure: {io: 400%, cpu: x}\n", "c.yaml:1: pressure: "),
            ("\npressure:\n", "c.yaml:2: pressure: "),
            ("pressure: 5\n", "c.yaml:1: pressure: "),
            ("pressure.io: 40%\n", "c.yaml:1: pressure.io: "),
        ];
        for (text, place) in table {
            let config = file(text).unwrap();
            let told: Vec<_> = config.removed.iter().map(ToString::to_string).collect();
            let [told] = told.try_into().unwrap();
            assert!(told.starts_with(place), "{text}: {told}");
            for part in ["was removed", "CPUWeight=", "IOWeight=", "rateLimit"] {
                assert!(told.contains(part), "{part} in {told}");
            }
            assert_eq!(config.settings, Settings::default(), "{text}");
            assert!(config.rows().iter().all(|row| !row.key.starts_with("pressure")));
        }
        let written = Given {
            key: "AIRGAPD_PRESSURE_IO".to_owned(),
            value: Typed::Written("40%".into()),
            place: Place::Variable("AIRGAPD_PRESSURE_IO".to_owned()),
        };
        let told = resolve(vec![written]).unwrap().removed;
        let place = "environment variable AIRGAPD_PRESSURE_IO: ";
        assert!(told[0].to_string().starts_with(place), "{told:?}");
    }

    #[test]
    fn a_key_that_only_begins_like_a_removed_one_is_a_mistake_and_no_removed_key_is_a_key() {
        for text in ["pressures: 5", "pressureIo: 40%"] {
            assert_eq!(file(text).unwrap_err().len(), 1, "{text}");
        }
        for key in KEYS {
            assert!(Removed::of(key.name).is_none(), "{}", key.name);
        }
    }

    #[test]
    fn all_mistakes_are_reported_at_once_each_with_its_line() {
        let text = "data_dir: /x\nresync: soon\n\nlimits:\n  # none\n  images: -1\n  imagez: 3\nlog: 5\nunpack: soon\n\
                    onRemoval: forget\nimagesDir: images\n";
        let expected = [
            "c.yaml:1: data_dir: there is no such key: did you mean `dataDir`?",
            "c.yaml:2: resync: expects a duration such as 10m or 20s, got \"soon\"",
            "c.yaml:6: limits.images: expects a number above 0, got -1",
            concat!(
                "c.yaml:7: limits.imagez: airgapd ",
                env!("CARGO_PKG_VERSION"),
                " has no such key"
            ),
            "c.yaml:8: log: is a group of keys, such as `level`",
            "c.yaml:9: unpack: expects one of none, background, before-record, got \"soon\"",
            "c.yaml:10: onRemoval: expects one of unpin, keep, delete, got \"forget\"",
            "c.yaml:11: imagesDir: expects an absolute path, got \"images\"",
        ];
        assert_eq!(file(text).unwrap_err(), expected);
    }

    #[test]
    fn what_is_no_configuration_is_one_mistake_with_its_line() {
        let table = [
            ("a: [", "c.yaml"),
            ("- a\n- b\n", "c.yaml: expects keys with values"),
            ("cri: true\ncri: false\n", "cri"),
            ("a: 1\n\tb: 2\n", "c.yaml:2"),
            ("just text", "c.yaml: expects keys with values"),
            ("a: 1\n---\nb: 2\n", "more than one document"),
        ];
        for (text, part) in table {
            let mistakes = file(text).unwrap_err();
            assert_eq!(mistakes.len(), 1, "{text:?}: {mistakes:?}");
            assert!(mistakes[0].contains(part), "{text:?}: {mistakes:?}");
        }
    }

    #[test]
    fn values_that_make_no_sense_are_refused() {
        let table = [
            "distribution: kind",
            "distribution: 1",
            "stateDir: ~",
            "stateDir: ''",
            "address: tcp://1.2.3.4:5",
            "namespace: a b",
            "namespace: ''",
            "namespace: 5",
            "cri: yes please",
            "platforms: [linux/amd64, all]",
            "platforms: ['!']",
            "platforms: 5",
            "resync: 0s",
            "resync: 10",
            "aliases: [a]",
            "aliases: ['=b']",
            "aliases: [{a: b}]",
            "names: {abc: busybox}",
            "names: {'md5:d41d8cd98f00b204e9800998ecf8427e': busybox}",
            "names: [x]",
            "baseName: 'Not A Name'",
            "baseName: ''",
            "allowedNames: ['a b']",
            "allowedNames: ['']",
            "allowedNames: [5]",
            "checksums: sometimes",
            "checksums: true",
            "imagesDirs: images",
            "imagesDirs: [images]",
            "imagesDirs: {a: /b}",
            "imagesDirs: ['']",
            "imagesDirs: [/a/../b]",
            "trustedDigests: trusted",
            "pullLists: maybe",
            "require: {manifests: apps}",
            "require: {manifests: [apps]}",
            "require: {images: ['-']}",
            "require: {k0sVersion: 1.34}",
            "require: {sandboxImage: 'Not A Name'}",
            "rateLimit: fast",
            "rateLimit: 100KiB",
            "rateLimit: -1",
            "limits: {zstdWindow: 100MiB}",
            "limits: {zstdWindow: 4GiB}",
            "limits: {expansion: 0}",
            "limits: {entries: 0}",
            "limits: {jsonDocument: 8 apples}",
            "limits: {jsonDocument: 99999999999TiB}",
            "log: {format: xml}",
        ];
        for text in table {
            assert_eq!(file(text).unwrap_err().len(), 1, "{text}");
        }
    }

    #[test]
    fn an_overruled_value_is_still_checked() {
        let mut mistakes = Vec::new();
        let mut given = vec![Given::from(Flag::Platforms(vec!["linux/arm64".to_owned()]))];
        given.extend(from_yaml(Path::new("c.yaml"), "platforms: ['?']", &mut mistakes));
        assert_eq!(resolve(given).unwrap_err().0.len(), 1);
    }

    #[test]
    fn every_value_reads_back_as_it_is_shown() {
        let mut config = Config {
            settings: Settings::default(),
            origins: BTreeMap::new(),
            file: None,
            removed: Vec::new(),
        };
        config.settings.limits.json_document = 1025;
        config.settings.platforms = PlatformChoice::All;
        config.settings.rate_limit = Some(50 << 20);
        for row in config.rows() {
            let key = key(row.key).unwrap();
            let mut again = config.settings.clone();
            (key.read)(&mut again, &row.value).unwrap();
            assert_eq!(again, config.settings, "{}", row.key);
        }
    }

    #[test]
    fn a_reload_takes_what_it_can_and_names_what_waits_for_a_restart() {
        let old = Settings::default();
        let new = Settings {
            resync: Duration::from_secs(7),
            exclude: vec!["r.test/*".parse().unwrap()],
            signatures: Some(Signatures::Require),
            trusted_keys: "/etc/keys".into(),
            namespace: "other".to_owned(),
            state_dir: "/elsewhere".into(),
            ..Settings::default()
        };
        let reloaded = reload(&old, new.clone());
        assert_eq!(
            reloaded.applied,
            ["resync", "exclude", "signatures", "trustedKeys"]
        );
        assert_eq!(reloaded.postponed, ["stateDir", "namespace"]);
        let wanted = Settings {
            namespace: old.namespace.clone(),
            state_dir: old.state_dir.clone(),
            ..new
        };
        assert_eq!(reloaded.settings, wanted);
    }

    /// The daemon opens these at its start.
    #[test]
    fn another_file_or_address_waits_for_a_restart() {
        let new = Settings {
            metrics_file: Some("/m".into()),
            metrics_address: Some("127.0.0.1:9799".parse().unwrap()),
            node_feature_file: Some("/f".into()),
            ..Settings::default()
        };
        let reloaded = reload(&Settings::default(), new);
        assert_eq!(reloaded.applied, Vec::<&str>::new());
        assert_eq!(
            reloaded.postponed,
            ["metricsFile", "metricsAddress", "nodeFeatureFile"]
        );
    }

    #[test]
    fn every_key_that_waits_for_a_restart_is_a_key() {
        for name in UNTIL_RESTART {
            assert!(key(name).is_some(), "{name}");
        }
    }
}
