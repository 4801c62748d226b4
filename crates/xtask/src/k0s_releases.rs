//! `cargo xtask k0s-releases`: writes the image sets of k0s's releases.
//!
//! The sets are the data files of the crate `requirements`, one for each minor version. From a
//! clone of k0s the task reads each release at its tag. From a k0s program it adds the set of that
//! release. Sets that the source lacks stay in the file.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use lab::workspace;

/// The first minor version with image sets.
const OLDEST: u64 = 29;

/// The first minor version that lists its images by platform and has traefik.
const BY_PLATFORM: u64 = 36;

/// The keys of the images, in the order of the files. k0s's names differ in case only.
const KEYS: [&str; 17] = [
    "konnectivity",
    "pushgateway",
    "metricsserver",
    "kubeproxy",
    "coredns",
    "pause",
    "calico.cni",
    "calico.node",
    "calico.kubecontrollers",
    "kuberouter.cni",
    "kuberouter.cniInstaller",
    "windows.kubeproxy",
    "windows.pause",
    "calico.windows.cni",
    "calico.windows.node",
    "envoyProxy",
    "traefik",
];

/// The image set of a release.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Set {
    /// `early`, `fixed` or `by-platform`, as `src/k0s/sets.rs` of `requirements` explains.
    listing: String,
    /// References by key.
    images: BTreeMap<String, String>,
}

/// The sets of a minor version.
type Sets = BTreeMap<Release, Set>;

/// A release such as `v1.36.3+k0s.2`, in the order of versions. A preview comes before its release.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Release {
    numbers: [u64; 3],
    is_final: bool,
    rest: Vec<u64>,
    tag: String,
}

impl Release {
    fn parse(tag: &str) -> Option<Release> {
        let (version, build) = tag.strip_prefix('v')?.split_once('+')?;
        let (core, preview) = version.split_once('-').unwrap_or((version, ""));
        let numbers = core.split('.').map(|part| part.parse().ok());
        let numbers: Vec<u64> = numbers.collect::<Option<_>>()?;
        let digits = |text: &str| -> Vec<u64> {
            let parts = text.split(|c: char| !c.is_ascii_digit());
            parts.filter_map(|part| part.parse().ok()).collect()
        };
        // The number in `k0s` itself is not a part of the version.
        let build = digits(build.strip_prefix("k0s.")?);
        // `rc` comes after `alpha` and `beta`.
        let kind = u64::from(preview.as_bytes().first().copied().unwrap_or_default());
        Some(Release {
            numbers: numbers.try_into().ok()?,
            is_final: preview.is_empty(),
            rest: [vec![kind], digits(preview), build].concat(),
            tag: tag.to_owned(),
        })
    }

    fn minor(&self) -> u64 {
        self.numbers[1]
    }
}

/// Writes the sets of a clone of k0s, or of a k0s program.
///
/// # Errors
///
/// Returns an error if the source is neither, or if a release has an unknown form. Then the task
/// writes no file.
pub fn run(source: &Path) -> Result<()> {
    let mut by_minor: BTreeMap<u64, Sets> = BTreeMap::new();
    let found = if source.is_dir() {
        of_checkout(source)?
    } else {
        let (release, set) = of_program(source)?;
        Sets::from([(release, set)])
    };
    for (release, set) in found {
        by_minor.entry(release.minor()).or_default().insert(release, set);
    }
    for (minor, sets) in by_minor {
        let path = data_file(minor);
        let before = match path.exists() {
            true => parse(&fs::read_to_string(&path)?).with_context(|| path.display().to_string())?,
            false => Sets::new(),
        };
        let known = before.len();
        let sets = merged(before, sets);
        fs::write(&path, written(minor, &sets))?;
        let (first, last) = (sets.first_key_value(), sets.last_key_value());
        let span = first.zip(last).map(|(first, last)| (&first.0.tag, &last.0.tag));
        let (first, last) = span.context("a minor version has a release")?;
        println!(
            "1.{minor}: {} releases, {known} before: {first} to {last}",
            sets.len()
        );
        if known == 0 {
            println!("  new: add {} to FILES in src/k0s/sets.rs", path.display());
        }
    }
    Ok(())
}

fn data_file(minor: u64) -> PathBuf {
    let folder = workspace().join("crates/requirements/data");
    folder.join(format!("k0s-v1.{minor}.yaml"))
}

/// Returns all sets. Previews are for minor versions without a release, and only the newest counts.
fn merged(before: Sets, found: Sets) -> Sets {
    let mut sets = before;
    sets.extend(found);
    match sets.keys().any(|release| release.is_final) {
        true => sets.retain(|release, _| release.is_final),
        false => sets = sets.pop_last().into_iter().collect(),
    }
    sets
}

/// Returns the text of a data file.
fn written(minor: u64, sets: &Sets) -> String {
    let listing = sets.last_key_value().map_or("fixed", |(_, set)| &set.listing);
    let mut text = format!(
        "# The images of k0s v1.{minor}, by release. `cargo xtask k0s-releases` writes this file. The facts\n\
         # come from https://github.com/k0sproject/k0s, at the tag of each release.\n\
         #\n\
         # src/k0s/sets.rs explains `listing`.\n\
         listing: {listing}\nreleases:\n"
    );
    for (release, set) in sets {
        let _ = writeln!(text, "  {}:", release.tag);
        if set.listing != listing {
            let _ = writeln!(text, "    listing: {}", set.listing);
        }
        for key in KEYS {
            if let Some(reference) = set.images.get(key) {
                let _ = writeln!(text, "    {key}: {reference}");
            }
        }
    }
    text
}

/// Reads the text of a data file.
fn parse(text: &str) -> Result<Sets> {
    let lines = || text.lines().filter(|line| !line.starts_with('#'));
    let common = lines().find_map(|line| line.strip_prefix("listing: "));
    let common = common.context("the file has no `listing`")?;
    let mut sets: Vec<(Release, Set)> = Vec::new();
    for line in lines() {
        if let Some((key, value)) = line.strip_prefix("    ").and_then(|line| line.split_once(": ")) {
            let (_, set) = sets.last_mut().context("an image before the first release")?;
            match key {
                "listing" => value.clone_into(&mut set.listing),
                _ => drop(set.images.insert(key.to_owned(), value.to_owned())),
            }
        } else if let Some(tag) = line.strip_prefix("  ").and_then(|line| line.strip_suffix(':')) {
            let release = Release::parse(tag).with_context(|| format!("{tag} is no release"))?;
            let set = Set {
                listing: common.to_owned(),
                images: BTreeMap::new(),
            };
            sets.push((release, set));
        }
    }
    Ok(sets.into_iter().collect())
}

/// Reads each release of a clone at its tag. Reports changes of the code that lists the images.
fn of_checkout(folder: &Path) -> Result<Sets> {
    let git = |arguments: &[&str]| -> Result<String> {
        let output = Command::new("git")
            .arg("-C")
            .arg(folder)
            .args(arguments)
            .output()?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "git {}: {complaint}",
            arguments.join(" ")
        );
        Ok(String::from_utf8(output.stdout)?)
    };
    let tags = git(&["tag", "--list", "v1.*"])?;
    let mut releases: Vec<Release> = tags.lines().filter_map(Release::parse).collect();
    releases.retain(|release| release.minor() >= OLDEST);
    releases.sort();
    ensure!(!releases.is_empty(), "{} has no tags of k0s", folder.display());
    let has_final: Vec<u64> = releases
        .iter()
        .filter(|release| release.is_final)
        .map(Release::minor)
        .collect();
    releases.retain(|release| release.is_final || !has_final.contains(&release.minor()));
    let mut sets = Sets::new();
    let mut before: Option<(String, String)> = None;
    for release in releases {
        let tag = release.tag.as_str();
        let show = |path: &str| git(&["show", &format!("{tag}:{path}")]);
        let mut constants = String::new();
        for path in git(&["ls-tree", "--name-only", tag, "pkg/constant/"])?.lines() {
            let is_of_linux = !path.ends_with("_windows.go") && !path.ends_with("_test.go");
            if path.ends_with(".go") && is_of_linux {
                constants += &show(path)?;
            }
        }
        let defaults = show("pkg/apis/k0s/v1beta1/images.go")?;
        let lister = show("pkg/airgap/images.go")?;
        let set = of_source(&constants, &defaults, &lister).with_context(|| tag.to_owned())?;
        let code = code_of(&lister);
        let sets_of_minor = fs::read_to_string(data_file(release.minor())).unwrap_or_default();
        let is_new = !sets_of_minor.contains(&format!("  {tag}:\n"));
        if let Some((before, _)) = before.as_ref().filter(|(_, known)| is_new && *known != code) {
            println!("{tag}: pkg/airgap/images.go differs from that of {before}: compare");
        }
        before = Some((release.tag.clone(), code));
        sets.insert(release, set);
    }
    Ok(sets)
}

/// Returns Go code without comments and blank lines.
fn code_of(go: &str) -> String {
    let lines = go.lines().map(str::trim);
    let mut is_comment = false;
    let code = lines.filter(|line| {
        let was_comment = is_comment || line.starts_with("/*");
        is_comment = was_comment && !line.contains("*/");
        !was_comment && !line.is_empty() && !line.starts_with("//")
    });
    code.collect::<Vec<_>>().join("\n")
}

/// Returns the set that k0s's source describes: its constants, the defaults of `spec.images`, and
/// the code that lists the images.
fn of_source(constants: &str, defaults: &str, lister: &str) -> Result<Set> {
    let constants: BTreeMap<&str, &str> = constants
        .lines()
        .filter_map(|line| line.trim().split_once(" = \""))
        .filter_map(|(name, value)| Some((name.trim(), value.strip_suffix('"')?)))
        .collect();
    let value = |name: &str| {
        let value = constants.get(name).copied();
        value.with_context(|| format!("k0s has no constant {name}"))
    };
    let mut images = BTreeMap::new();
    for (field, (image, version)) in fields(defaults)? {
        let key = KEYS.iter().find(|key| key.eq_ignore_ascii_case(&field));
        let key = key.with_context(|| format!("k0s has a new image, spec.images.{field}"))?;
        let reference = format!("{}:{}", value(&image)?, value(&version)?);
        images.insert((*key).to_owned(), reference);
    }
    for (key, name) in [("envoyProxy", "EnvoyProxyImage"), ("traefik", "TraefikImage")] {
        if constants.contains_key(name) {
            let version = value(&format!("{name}Version"))?;
            images.insert(key.to_owned(), format!("{}:{version}", value(name)?));
        }
    }
    let listing = if lister.contains("env.Platform.OS") {
        "by-platform"
    } else if lister.contains("constant.KubePauseContainerImage") {
        "early"
    } else {
        "fixed"
    };
    Ok(Set {
        listing: listing.to_owned(),
        images,
    })
}

/// Returns the fields of `DefaultClusterImages`, such as `Calico.Windows.CNI`, with the names of
/// the constants for image and version.
fn fields(defaults: &str) -> Result<Vec<(String, (String, String))>> {
    let body = defaults.split("func DefaultClusterImages()").nth(1);
    let body = body.context("k0s has no DefaultClusterImages")?;
    let body = body.split("\n}").next().unwrap_or_default();
    let (mut path, mut fields) = (Vec::new(), Vec::<(String, (String, String))>::new());
    for line in body.lines().map(str::trim) {
        let constant = |name| {
            let rest = line.strip_prefix(name)?.trim().strip_prefix("constant.")?;
            rest.strip_suffix(',').map(str::to_owned)
        };
        if let Some(image) = constant("Image:") {
            fields.push((path.join("."), (image, String::new())));
        } else if let Some(version) = constant("Version:") {
            let last = fields.last_mut().context("a version without an image")?;
            last.1.1 = version;
        } else if let Some((name, _)) = line.split_once(": ").filter(|_| line.ends_with('{')) {
            path.push(name);
        } else if line == "}," {
            path.pop();
        }
    }
    Ok(fields)
}

/// Asks a k0s program for the set of its release.
fn of_program(program: &Path) -> Result<(Release, Set)> {
    let ask = |arguments: &[&str], input: &str| -> Result<String> {
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| program.display().to_string())?;
        // The program may close its input unread.
        let _ = child
            .stdin
            .take()
            .map(|mut stdin| stdin.write_all(input.as_bytes()));
        let output = child.wait_with_output()?;
        let status = output.status;
        ensure!(status.success(), "{} ended with {status}", program.display());
        Ok(String::from_utf8(output.stdout)?)
    };
    let version = ask(&["version"], "")?;
    let release = Release::parse(version.trim());
    let release =
        release.with_context(|| format!("{} is no k0s: its version is {version}", program.display()))?;
    let minor = release.minor();
    let set = of_answers(minor, |platform, config| {
        let mut arguments = vec!["airgap", "list-images", "--all", "--config=-"];
        let platform = format!("--platform={platform}");
        if minor >= BY_PLATFORM {
            arguments.push(&platform);
        }
        ask(&arguments, config)
    })?;
    Ok((release, set))
}

/// Returns the set that a k0s lists. `list` returns all its images for a platform and a
/// configuration.
///
/// A configuration replaces every version by a mark, which shows the name of each image. Another
/// configuration replaces every name. The order of the list does not matter.
fn of_answers(minor: u64, list: impl Fn(&str, &str) -> Result<String>) -> Result<Set> {
    let is_by_platform = minor >= BY_PLATFORM;
    let platforms: &[&str] = match is_by_platform {
        true => &["linux/amd64", "windows/amd64"],
        false => &["linux/amd64"],
    };
    let is_wanted = |key: &str| is_by_platform || !(key.contains("windows") || key == "traefik");
    let (mut names, mut versions) = (BTreeMap::new(), BTreeMap::new());
    for platform in platforms {
        let marked = list(platform, &marked(&is_wanted, "version", ""))?;
        names.extend(marked.lines().filter_map(|line| {
            let (name, mark) = line.rsplit_once(':')?;
            Some((mark.to_owned(), name.to_owned()))
        }));
        let marked = list(platform, &self::marked(&is_wanted, "image", MARK))?;
        versions.extend(marked.lines().filter_map(|line| {
            let (mark, version) = line.strip_prefix(MARK)?.split_once(':')?;
            Some((mark.to_owned(), version.to_owned()))
        }));
    }
    let mut images = BTreeMap::new();
    for key in KEYS.into_iter().filter(|key| is_wanted(key)) {
        let (Some(name), Some(version)) = (names.get(key), versions.get(key)) else {
            bail!("k0s does not list {key} as this task expects: use a clone of k0s");
        };
        images.insert(key.to_owned(), format!("{name}:{version}"));
    }
    let listing = if is_by_platform { "by-platform" } else { "fixed" };
    Ok(Set {
        listing: listing.to_owned(),
        images,
    })
}

/// Start of the image names that show the place of their versions.
const MARK: &str = "mark.test/";

/// Returns a configuration whose images have their keys after `start` in place of a value.
fn marked(is_wanted: &dyn Fn(&str) -> bool, member: &str, start: &str) -> String {
    let group = |prefix: &str| -> String {
        let keys = KEYS.into_iter().filter(|key| is_wanted(key));
        let members = keys.filter_map(|key| {
            let name = key.strip_prefix(prefix)?;
            (!name.contains('.')).then(|| format!("{name}: {{{member}: '{start}{key}'}}, "))
        });
        members.collect()
    };
    let is_balancer = |key: &str| key == "envoyProxy" || key == "traefik";
    let balancers: String = KEYS
        .into_iter()
        .filter(|key| is_balancer(key) && is_wanted(key))
        .map(|key| format!("{key}: {{image: {{{member}: '{start}{key}'}}}}, "))
        .collect();
    let plain: String = KEYS
        .into_iter()
        .filter(|key| !key.contains('.') && !is_balancer(key))
        .map(|key| format!("{key}: {{{member}: '{start}{key}'}}, "))
        .collect();
    let nested = |name: &str, members: String| match members.is_empty() {
        true => String::new(),
        false => format!("{name}: {{{members}}}, "),
    };
    let windows = nested("windows", group("calico.windows."));
    let calico = nested("calico", group("calico.") + &windows);
    let router = nested("kuberouter", group("kuberouter."));
    let windows = nested("windows", group("windows."));
    format!(
        "apiVersion: k0s.k0sproject.io/v1beta1\nkind: ClusterConfig\nmetadata: {{name: k0s}}\n\
         spec: {{images: {{{plain}{calico}{router}{windows}}}, \
         network: {{nodeLocalLoadBalancing: {{{balancers}}}}}}}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(minor: u64, tag: &str) -> Set {
        let sets = parse(&fs::read_to_string(data_file(minor)).unwrap()).unwrap();
        sets[&Release::parse(tag).unwrap()].clone()
    }

    #[test]
    fn releases_have_the_order_of_versions() {
        let tags = [
            "v1.29.9+k0s.0",
            "v1.29.10+k0s.0",
            "v1.36.3-alpha.2+k0s.0",
            "v1.36.3-rc.1+k0s.0",
            "v1.36.3+k0s.0",
            "v1.36.3+k0s.10",
        ];
        let parsed: Vec<_> = tags.iter().map(|tag| Release::parse(tag).unwrap()).collect();
        assert!(parsed.is_sorted(), "{parsed:?}");
        for text in [
            "1.29.9+k0s.0",
            "v1.29+k0s.0",
            "v1.29.9",
            "v1.29.9+rke2r1",
            "v1.x.9+k0s.0",
        ] {
            assert_eq!(Release::parse(text), None, "{text}");
        }
    }

    #[test]
    fn the_data_files_are_what_the_task_writes() {
        for minor in OLDEST.. {
            let path = data_file(minor);
            let Ok(text) = fs::read_to_string(&path) else {
                assert!(minor > BY_PLATFORM);
                return;
            };
            assert_eq!(written(minor, &parse(&text).unwrap()), text, "{}", path.display());
        }
    }

    #[test]
    fn a_preview_counts_until_there_is_a_release() {
        let sets = |tags: &[&str]| -> Sets {
            let set = set(36, "v1.36.1+k0s.0");
            let releases = tags.iter().map(|tag| Release::parse(tag).unwrap());
            releases.map(|release| (release, set.clone())).collect()
        };
        let tags = |sets: Sets| -> Vec<String> { sets.into_keys().map(|release| release.tag).collect() };
        let (alpha, beta, done) = ("v1.37.0-alpha.1+k0s.0", "v1.37.0-beta.0+k0s.0", "v1.37.1+k0s.0");
        assert_eq!(tags(merged(sets(&[alpha]), sets(&[beta]))), [beta]);
        assert_eq!(tags(merged(sets(&[alpha]), sets(&[done]))), [done]);
        assert_eq!(tags(merged(sets(&[done]), sets(&[beta]))), [done]);
    }

    #[test]
    fn a_set_is_read_from_the_source_of_k0s() {
        let constants = "const (\n\tPauseImage        = \"r.test/pause\"\n\tPauseImageVersion = \"3.9\"\n\
            \tCNI = \"r.test/cni\"\n\tShared = \"v1\"\n\tEnvoyProxyImage = \"r.test/envoy\"\n\
            \tEnvoyProxyImageVersion = \"v2\"\n\tMode = 0755\n)\n";
        let defaults = "func DefaultClusterImages() *ClusterImages {\n\treturn &ClusterImages{\n\
            \t\tDefaultPullPolicy: \"IfNotPresent\",\n\
            \t\tCalico: &CalicoImageSpec{\n\t\t\tWindows: &W{\n\t\t\t\tCNI: &ImageSpec{\n\
            \t\t\t\t\tImage:   constant.CNI,\n\t\t\t\t\tVersion: constant.Shared,\n\t\t\t\t},\n\t\t\t},\n\t\t},\n\
            \t\tPause: ImageSpec{\n\t\t\tImage:   constant.PauseImage,\n\
            \t\t\tVersion: constant.PauseImageVersion,\n\t\t},\n\t}\n}\n\nfunc other() {}\n";
        let read = |defaults: &str, lister: &str| of_source(constants, defaults, lister);
        let set = read(defaults, "switch env.Platform.OS {").unwrap();
        let images = [
            ("calico.windows.cni", "r.test/cni:v1"),
            ("envoyProxy", "r.test/envoy:v2"),
            ("pause", "r.test/pause:3.9"),
        ];
        let images = images.map(|(key, image)| (key.to_owned(), image.to_owned()));
        assert_eq!((set.listing.as_str(), set.images), ("by-platform", images.into()));
        assert_eq!(read(defaults, "spec.Images").unwrap().listing, "fixed");
        let early = read(defaults, "Image: constant.KubePauseContainerImage,").unwrap();
        assert_eq!(early.listing, "early");
        for (text, part) in [
            (defaults.replace("Pause:", "Another:"), "spec.images.Another"),
            (
                defaults.replace("constant.CNI", "constant.Gone"),
                "no constant Gone",
            ),
            (String::new(), "DefaultClusterImages"),
        ] {
            let error = read(&text, "").unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn comments_are_no_change_of_the_code() {
        let old = "/*\nCopyright\n*/\n\npackage airgap\n\n// GetImageURIs\nfunc a() {}\n";
        assert_eq!(code_of(old), "package airgap\nfunc a() {}");
        assert_eq!(code_of(old), code_of("// SPDX\n\npackage airgap\nfunc a() {}\n"));
    }

    /// Answers like a k0s that has these images.
    fn answer(set: &Set, platform: &str, config: &str) -> String {
        let is_of_windows = |key: &str| key.contains("windows");
        let keys = KEYS
            .iter()
            .filter(|key| is_of_windows(key) == platform.starts_with("windows"));
        let lines = keys.filter_map(|key| {
            let (name, version) = set.images.get(*key)?.rsplit_once(':')?;
            let given = |member: &str, default: &str, start: &str| match config
                .contains(&format!("{{{member}: '{start}{key}'}}"))
            {
                true => format!("{start}{key}"),
                false => default.to_owned(),
            };
            let (name, version) = (given("image", name, MARK), given("version", version, ""));
            Some(format!("{name}:{version}\n"))
        });
        lines.collect()
    }

    #[test]
    fn a_program_gives_the_set_of_its_release() {
        for (minor, tag) in [(36, "v1.36.3+k0s.2"), (33, "v1.33.13+k0s.1")] {
            let known = set(minor, tag);
            let asked = of_answers(minor, |platform, config| Ok(answer(&known, platform, config)));
            assert_eq!(asked.unwrap(), known, "{tag}");
        }
        let mut known = set(33, "v1.33.13+k0s.1");
        known.images.remove("pushgateway");
        let error = of_answers(33, |platform, config| Ok(answer(&known, platform, config))).unwrap_err();
        assert!(error.to_string().contains("pushgateway"), "{error}");
    }
}
