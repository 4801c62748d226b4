//! The images of k0s: from k0s's own program if it can answer, and otherwise from the image set of
//! a release.

use std::ffi::OsString;
use std::fs::{File, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use import::Reference;
use platforms::{Matcher, Platform, Rules};
use requirements::k0s::{self, ClusterConfig, ImageSet, Origin};
use requirements::{Limits, lists};
use serde::Serialize;

use super::{Kind, Needs, Source, files};

/// The configuration that k0s reads by default.
const DEFAULT: &str = "/etc/k0s/k0s.yaml";

/// The file with which a running k0s names the configuration that it was started with. k0s's
/// program then answers for this configuration and for no other.
const RUNNING: &str = "/run/k0s/k0s.yaml";

/// The first minor version whose program knows other platforms than its own.
const PLATFORM_SINCE: u64 = 36;

/// Longest run time of the program, and its longest answer in bytes.
const PATIENCE: Duration = Duration::from_secs(30);
const LONGEST_ANSWER: u64 = 1 << 20;

/// The wanted images of k0s, and the sources for them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct K0sQuestion {
    /// The cluster configuration, of k0s or k0sctl. `-` is standard input. The default is the
    /// configuration of this machine, as k0s itself reads it.
    pub k0s_config: Option<PathBuf>,
    /// The release of k0s, such as v1.34.10+k0s.0 or 1.34.
    pub k0s_version: Option<String>,
    /// The k0s program to ask.
    pub k0s: Option<PathBuf>,
    /// A file with the images of other releases.
    pub image_set: Option<PathBuf>,
    /// True to include the images that the configuration of k0s does not use.
    pub all: bool,
    /// True if the release must be given. Then nothing is guessed, and no program is started.
    pub is_release_wanted: bool,
}

impl K0sQuestion {
    /// Returns true if any image of k0s is wanted.
    pub fn is_given(&self) -> bool {
        let files = [&self.k0s_config, &self.k0s, &self.image_set];
        files.iter().any(|file| file.is_some()) || self.k0s_version.is_some() || self.all
    }
}

/// The origin of k0s's list.
#[derive(Clone, Debug, Serialize)]
pub struct K0sAnswer {
    /// The release. `null` if the program did not tell.
    pub release: Option<String>,
    /// `built-in`, `file` or `program`.
    pub source: &'static str,
    /// The file or the program.
    pub path: Option<String>,
    /// The platform that the list is for, such as `linux/amd64`.
    pub platform: String,
    /// True if the list has the images of every feature. Otherwise it has those of the features
    /// that the configuration turns on.
    pub all: bool,
    /// The pull policy of k0s's own pods, unless the load balancer has one of its own.
    pub default_pull_policy: String,
}

impl K0sAnswer {
    /// Returns a line for people.
    pub fn text(&self) -> String {
        let release = self.release.as_deref().unwrap_or("of an unknown release");
        let from = match (self.source, &self.path) {
            ("program", Some(path)) => format!("as {path} lists them"),
            ("file", Some(path)) => format!("from {path}"),
            _ => "from the image set in this program".to_owned(),
        };
        format!("the images of k0s {release} for {}, {from}", self.platform)
    }
}

/// A list of k0s, or the reason why there is none.
type Listed = Result<(Vec<Source>, K0sAnswer), String>;

impl Needs {
    /// Adds the images of k0s for nodes of a platform. `None` is this machine's.
    pub async fn add_k0s(&mut self, args: &K0sQuestion, platform: Option<&Platform>) {
        match list(args, platform, &mut self.notes).await {
            Ok((sources, answer)) => {
                self.found.extend(sources);
                self.k0s = Some(answer);
            }
            Err(mistake) => self.mistakes.push(mistake),
        }
    }
}

struct Asked<'a> {
    args: &'a K0sQuestion,
    config: ClusterConfig,
    /// The text of the configuration and its name.
    text: Option<files::Text>,
    platform: Platform,
    /// True if this machine's program needs to know the platform for its answer.
    is_foreign: bool,
}

async fn list(args: &K0sQuestion, platform: Option<&Platform>, notes: &mut Vec<String>) -> Listed {
    let given = args.k0s_config.clone();
    let of_this_node = match given.is_none() && !args.is_release_wanted {
        true => of_this_node(),
        false => None,
    };
    let is_of_this_node = of_this_node.is_some();
    let text = given.or(of_this_node).as_deref().map(files::read).transpose()?;
    let config = match &text {
        Some(text) => {
            k0s::parse(&text.text, &Limits::default()).map_err(|problems| in_file(&text.name, &problems))?
        }
        None => ClusterConfig::default(),
    };
    if let Some(text) = &text {
        let name = &text.name;
        if is_of_this_node {
            notes.push(format!(
                "the configuration of k0s is {name}, as k0s reads it (--k0s-config names another)"
            ));
        }
        notes.extend(config.notes.iter().map(|note| format!("{name}: {note}")));
    }
    let host = platforms::host();
    let platform = platform.cloned().unwrap_or_else(|| host.clone());
    let asked = Asked {
        args,
        config,
        text,
        is_foreign: !Matcher::strict(&host, Rules::Rc3).accepts(&platform),
        platform,
    };
    asked.list(notes).await
}

/// Returns the path of the configuration that `k0s airgap list-images` reads on this machine, if it
/// gets no `--config`. Only the user of k0s can read the file of a running k0s.
fn of_this_node() -> Option<PathBuf> {
    let running = is_running()
        .then(|| std::fs::read_to_string(RUNNING).ok())
        .flatten();
    let started = running.and_then(|text| k0s::startup_config(&text, &Limits::default()));
    let path = started.map_or_else(|| PathBuf::from(DEFAULT), PathBuf::from);
    // k0s works without its default file, but not without a file that it was given.
    (path != Path::new(DEFAULT) || path.exists()).then_some(path)
}

/// Returns true if k0s runs. It then holds the lock beside its file. A killed k0s leaves both files
/// behind without the lock. Source: k0s, `pkg/config/runtime.go`.
fn is_running() -> bool {
    let lock = File::open(format!("{RUNNING}.lock")).map(|file| file.try_lock_shared());
    matches!(lock, Ok(Err(TryLockError::WouldBlock)))
}

fn in_file(name: &str, problems: &requirements::Problems) -> String {
    let lines: Vec<_> = problems
        .0
        .iter()
        .map(|problem| format!("{name}: {problem}"))
        .collect();
    lines.join("\n")
}

impl Asked<'_> {
    async fn list(&self, notes: &mut Vec<String>) -> Listed {
        let release = self
            .args
            .k0s_version
            .as_deref()
            .or(self.config.release.as_deref());
        if let Some(path) = &self.args.image_set {
            let text = files::read(path)?;
            let set = k0s::parse_sets(&text.text, release, &Limits::default());
            let set = set.map_err(|problems| in_file(&text.name, &problems))?;
            return self.by_set(&set, Some(text.name));
        }
        if let Some(program) = &self.args.k0s {
            if self.is_answered_for_another() {
                notes.push(format!(
                    "k0s runs here, so its program answers for {RUNNING} and ignores any other configuration"
                ));
            }
            let release = version(program).await?;
            return self.by_program(program, release).await;
        }
        if let Some(release) = release {
            return match k0s::builtin(release) {
                Ok(set) => self.by_set(&set, None),
                Err(unknown) => match self.installed_release(release, notes).await {
                    Some(listed) => Ok(listed),
                    None => match self.preview(release, notes) {
                        Some(set) => self.by_set(&set, None),
                        None => Err(unknown.to_string()),
                    },
                },
            };
        }
        if self.args.is_release_wanted {
            return Err("no release of k0s is given: set `require.k0sVersion`".to_owned());
        }
        match self.installed(notes).await {
            Some(listed) => Ok(listed),
            None => {
                let set = k0s::newest();
                notes.push(format!(
                    "no release of k0s is given: these are the images of {} (--k0s-version chooses another)",
                    set.release
                ));
                self.by_set(&set, None)
            }
        }
    }

    /// Asks the installed program for its images, or at least for its release.
    async fn installed(&self, notes: &mut Vec<String>) -> Option<(Vec<Source>, K0sAnswer)> {
        let (program, release) = installed_k0s(notes).await?;
        if let Some(listed) = self.by_installed(&program, &release, notes).await {
            return Some(listed);
        }
        let set = k0s::builtin(&release)
            .map_err(|unknown| notes.push(unknown.to_string()))
            .ok()?;
        self.by_set(&set, None).map_err(|error| notes.push(error)).ok()
    }

    /// Asks the installed program if it is of this release.
    async fn installed_release(
        &self,
        wanted: &str,
        notes: &mut Vec<String>,
    ) -> Option<(Vec<Source>, K0sAnswer)> {
        if self.args.is_release_wanted {
            return None;
        }
        let (program, release) = installed_k0s(notes).await?;
        if !k0s::is_of_release(&release, wanted) {
            notes.push(format!("{} is k0s {release}, not {wanted}", program.display()));
            return None;
        }
        self.by_installed(&program, &release, notes).await
    }

    /// Returns the set of a preview if a version without a final release is wanted.
    fn preview(&self, wanted: &str, notes: &mut Vec<String>) -> Option<ImageSet> {
        if self.args.is_release_wanted {
            return None;
        }
        let set = k0s::preview(wanted)?;
        notes.push(format!(
            "no final release of k0s {wanted} is known: these are the images of the preview {}",
            set.release
        ));
        Some(set)
    }

    async fn by_installed(
        &self,
        program: &Path,
        release: &str,
        notes: &mut Vec<String>,
    ) -> Option<(Vec<Source>, K0sAnswer)> {
        let knows_platform = minor(release).is_some_and(|minor| minor >= PLATFORM_SINCE);
        let listed = if self.is_answered_for_another() {
            Err(format!("while k0s runs, it answers only for {RUNNING}"))
        } else if self.is_foreign && !knows_platform {
            Err("it lists images only for its own platform".to_owned())
        } else {
            self.by_program(program, release.to_owned()).await
        };
        listed
            .map_err(|why| notes.push(format!("{} {release} cannot be asked: {why}", program.display())))
            .ok()
    }

    /// Returns true if the program would answer for another configuration: that of the running k0s.
    fn is_answered_for_another(&self) -> bool {
        self.args.k0s_config.is_some() && is_running()
    }

    fn by_set(&self, set: &ImageSet, path: Option<String>) -> Listed {
        let needed = k0s::images(&self.config, set, &self.platform, self.args.all);
        let needed = needed.map_err(|error| error.to_string())?;
        let source = |needed: k0s::Needed| Source {
            field: Some(needed.component.field()),
            pull_policy: Some(needed.pull_policy),
            ..self.source(needed.reference)
        };
        let sources = needed.into_iter().map(source).collect();
        let kind = match set.origin {
            Origin::BuiltIn => "built-in",
            Origin::File => "file",
        };
        Ok((sources, self.answer(Some(set.release.clone()), kind, path)))
    }

    async fn by_program(&self, program: &Path, release: String) -> Listed {
        let mut arguments: Vec<OsString> = vec!["airgap".into(), "list-images".into()];
        if self.args.all {
            arguments.push("--all".into());
        }
        if self.is_foreign {
            arguments.push(format!("--platform={}", self.platform).into());
        }
        arguments.push("--config=-".into());
        let of_k0sctl = self.config.of_k0sctl.as_deref();
        let text = self.text.as_ref().map_or("{}", |text| &text.text);
        let text = of_k0sctl.unwrap_or(text);
        let answer = ask(program, &arguments, text).await?;
        let sources = lists::parse(&answer).into_iter().map(|entry| {
            let reference = entry.reference;
            match reference.parse::<Reference>() {
                Ok(_) => Ok(Source {
                    pull_policy: Some(self.config.policies.of(k0s::Component::Pause).to_owned()),
                    ..self.source(reference)
                }),
                Err(error) => Err(format!("its answer is no list of images: {error}")),
            }
        });
        let sources = sources.collect::<Result<Vec<_>, _>>()?;
        if sources.is_empty() {
            return Err("it lists no images at all".to_owned());
        }
        let path = program.display().to_string();
        Ok((sources, self.answer(Some(release), "program", Some(path))))
    }

    fn source(&self, reference: String) -> Source {
        Source {
            kind: Kind::K0s,
            path: self.text.as_ref().map(|text| text.name.clone()),
            object: None,
            field: None,
            given: reference,
            pull_policy: None,
        }
    }

    fn answer(&self, release: Option<String>, source: &'static str, path: Option<String>) -> K0sAnswer {
        K0sAnswer {
            release,
            source,
            path,
            platform: self.platform.to_string(),
            all: self.args.all,
            default_pull_policy: self
                .config
                .policies
                .default
                .clone()
                .unwrap_or_else(|| "IfNotPresent".to_owned()),
        }
    }
}

/// Returns true if a file is the program of a distribution. The name `k0s` may be a link to this
/// program, which answers the command lines of k0s.
#[must_use]
pub fn is_foreign_program(file: &Path) -> bool {
    let Ok(target) = std::fs::canonicalize(file) else {
        return false;
    };
    // An update replaces the file of a running daemon. Then only its name tells.
    let is_own = target.file_name().is_some_and(|name| name == "airgapd")
        || std::env::current_exe().is_ok_and(|own| std::fs::canonicalize(own).is_ok_and(|own| own == target));
    target.is_file() && !is_own
}

/// Finds the program of k0s on this machine.
fn find() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain([PathBuf::from("/usr/local/bin")]);
    folders
        .map(|folder| folder.join("k0s"))
        .find(|file| is_foreign_program(file))
}

/// Returns the installed program and its release.
async fn installed_k0s(notes: &mut Vec<String>) -> Option<(PathBuf, String)> {
    let program = find()?;
    let release = version(&program).await.map_err(|error| notes.push(error)).ok()?;
    Some((program, release))
}

async fn version(program: &Path) -> Result<String, String> {
    let answer = ask(program, &["version".into()], "").await?;
    let release = answer.lines().next().unwrap_or_default().trim().to_owned();
    if minor(&release).is_none() {
        return Err(format!(
            "{} does not say which release of k0s it is",
            program.display()
        ));
    }
    Ok(release)
}

fn minor(release: &str) -> Option<u64> {
    release
        .strip_prefix('v')
        .unwrap_or(release)
        .split('.')
        .nth(1)?
        .parse()
        .ok()
}

/// Runs the program with a text on its standard input, and returns its output.
async fn ask(program: &Path, arguments: &[OsString], input: &str) -> Result<String, String> {
    let mut command = Command::new(program);
    command.args(arguments);
    let (name, input) = (program.display().to_string(), input.as_bytes().to_owned());
    let asked = tokio::task::spawn_blocking(move || ask_blocking(command, &name, input));
    asked.await.expect("asking never panics")
}

fn ask_blocking(mut command: Command, name: &str, input: Vec<u8>) -> Result<String, String> {
    let cannot = |error: io::Error| format!("cannot run {name}: {error}");
    let piped = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = piped.spawn().map_err(cannot)?;
    let mut stdin = child.stdin.take().expect("it is piped");
    // A program that does not read its input has closed it, which is no mistake.
    thread::spawn(move || drop(stdin.write_all(&input)));
    let said = read_beside(child.stdout.take().expect("it is piped"));
    let complained = read_beside(child.stderr.take().expect("it is piped"));
    let deadline = Instant::now() + PATIENCE;
    let left = || deadline.saturating_duration_since(Instant::now());
    let ended = (said.recv_timeout(left()), complained.recv_timeout(left()));
    let (Ok(said), Ok(complained)) = ended else {
        let _ = child.kill();
        let _ = child.wait();
        return Err(format!("{name} did not end within {} s", PATIENCE.as_secs()));
    };
    // The program has closed its output, or written more than is read.
    let status = child.wait().map_err(cannot)?;
    if !status.success() {
        let complaint = String::from_utf8_lossy(&complained);
        let complaint = complaint.lines().last().unwrap_or_default();
        return Err(format!(
            "{name} ended with {status}: {}",
            basics::foreign::quoted(complaint)
        ));
    }
    String::from_utf8(said).map_err(|_| format!("the answer of {name} is no text in UTF-8"))
}

/// Reads a pipe in a separate thread, up to the longest answer. The pipe is then dropped, which
/// ends a program that writes more.
fn read_beside(pipe: impl Read + Send + 'static) -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = pipe.take(LONGEST_ANSWER).read_to_end(&mut bytes);
        let _ = sender.send(bytes);
    });
    receiver
}
