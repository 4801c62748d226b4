//! Decides if the node is ready: `GET /ready` and `airgapd wait --now`. Pure.
//!
//! The daemon makes `Facts` of its state. `judge` compares a [`Query`] with them and gives a
//! [`Readiness`], which is the document of `/ready`. docs/control.md describes it.
//!
//! A node that was ready stays ready while the daemon cannot look: during a restart of containerd
//! or of the daemon itself. For that the daemon keeps a `Memory` of the last certain state. It
//! holds for `TRUST`, in this boot and for this containerd only. Something that is found missing
//! ends it at once. A result that an event made doubtful holds as long, if no check follows it.
//!
//! The labels of the node and its metrics come from the same findings: `Facts::standing`.

mod memory;
mod query;
mod readiness;

pub(crate) use memory::Memory;
pub use query::{BadQuery, Query};
pub use readiness::{BundleCount, Cause, Names, Readiness, ReleaseCount, RequiredCount, VERSION};

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::time::Duration;

use crate::place;
use crate::state::ledger::{LastTry, Outcome};
use crate::status::{BundleStatus, ReleaseStatus, RequiredStatus, State, Status};
use crate::verdict::{self, Health};
use basics::{Foreign, counted};

/// Time for which the last certain state holds if the daemon cannot confirm it. A restart of
/// containerd or of the daemon takes less.
pub(crate) const TRUST: Duration = Duration::from_secs(60);

/// The facts about a node that decide if it is ready.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Facts {
    /// Time since the boot of the machine at which they were true.
    pub at: Duration,
    /// The boot id of the machine. `None` if the kernel does not tell it.
    pub boot: Option<String>,
    /// The uuid of the connected containerd. `None` without a connection, and if containerd has
    /// none.
    pub containerd: Option<String>,
    /// True if there is a connection to containerd.
    pub is_reachable: bool,
    /// The images that the configuration requires. `None` if it requires none.
    pub required: Option<Required>,
    /// The bundles, except those whose files are gone, by name.
    pub bundles: Vec<Bundle>,
    /// The releases, by name.
    pub releases: Vec<ReleaseStatus>,
    /// The images folders, the first one first.
    pub folders: Vec<PathBuf>,
    /// The reason why a folder is not read, or why bundles of it are missing.
    pub folder_problem: Option<String>,
    /// The last certain state, these facts included.
    pub memory: Memory,
}

/// The images that the configuration requires.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Required {
    /// The part of the configuration that names them, and its files, in a short form. Equal keys
    /// require the same. `None` if the files are not known.
    pub key: Option<String>,
    /// The result of the last check.
    pub last: RequiredStatus,
}

/// A bundle of the images folders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bundle {
    /// Its name, as labels have it.
    pub name: String,
    /// Its state.
    pub state: State,
    /// Its content digest, if it was imported before.
    pub content: Option<String>,
    /// True if the bundle has nothing for this node, as far as the daemon knows.
    pub is_skipped: bool,
    /// True if it is a receipt.
    pub is_receipt: bool,
    /// The name of the bundle of an images folder, if this is its receipt. A receipt of an import
    /// by hand stands for another file, which may have any name.
    pub stands_for: Option<String>,
    /// The worst health of its reasons.
    pub health: Health,
    /// The first of these reasons.
    pub why: Option<String>,
}

/// The circumstances of a status that are no part of its document.
#[derive(Clone, Debug, Default)]
pub(crate) struct Circumstances {
    /// See [`Facts::at`].
    pub at: Duration,
    /// See [`Facts::boot`].
    pub boot: Option<String>,
    /// See [`Facts::containerd`].
    pub containerd: Option<String>,
    /// See [`Required::key`].
    pub key: Option<String>,
    /// The folder of receipts, which is no images folder.
    pub receipts: PathBuf,
}

/// The findings about the things that outputs tell one by one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Standing<'f> {
    /// True if all required images are there, and false if one of them is missing. `None` if
    /// neither is known, or if the configuration requires none.
    pub required: Option<bool>,
    /// The releases that are in place.
    pub releases: HashSet<&'f str>,
}

impl Facts {
    /// Returns the facts of a status, without a memory.
    pub(crate) fn of(status: &Status, circumstances: Circumstances) -> Facts {
        let Circumstances {
            at,
            boot,
            containerd,
            key,
            receipts,
        } = circumstances;
        let there = status.bundles.iter().filter(|bundle| bundle.state != State::Gone);
        let mut problems = status.folders().filter_map(|folder| {
            let vanished = folder.vanished.as_ref().map(|vanished| &vanished.problem);
            let problem = folder.problem.as_ref().or(vanished)?;
            Some(format!("{}: {problem}", folder.path))
        });
        Facts {
            at,
            boot,
            containerd,
            is_reachable: status.containerd.reachable,
            required: status.required.as_ref().map(|last| Required {
                key,
                last: RequiredStatus {
                    // Readiness needs the missing images only, and there may be thousands of names.
                    names: Vec::new(),
                    ..last.clone()
                },
            }),
            bundles: there.map(Bundle::of).collect(),
            releases: status.releases.clone(),
            folder_problem: problems.next(),
            folders: status
                .folder_paths()
                .into_iter()
                .map(PathBuf::from)
                .filter(|folder| *folder != receipts)
                .collect(),
            memory: Memory::default(),
        }
    }

    /// Adds these facts to a memory of earlier ones, and keeps a copy of it.
    #[must_use]
    pub(crate) fn noted_in(mut self, memory: &mut Memory) -> Facts {
        memory.note(&self);
        self.memory = memory.clone();
        self
    }

    /// Returns the findings about the required images and each release, at this time since the
    /// boot of the machine. [`judge`] has the same findings.
    pub(crate) fn standing(&self, now: Duration) -> Standing<'_> {
        if now.saturating_sub(self.at) > TRUST {
            return Standing::default();
        }
        let case = Case::new(self, now);
        let required = match case.required() {
            Some(Finding::There | Finding::Held(_)) => Some(true),
            Some(Finding::Not(problem)) if problem.cause == Cause::Missing => Some(false),
            Some(Finding::Not(_)) | None => None,
        };
        let is_there = |release: &&ReleaseStatus| !matches!(case.release(release), Finding::Not(_));
        let releases = self.releases.iter().filter(is_there);
        Standing {
            required,
            releases: releases.map(|release| release.name.as_str()).collect(),
        }
    }
}

impl Bundle {
    fn of(bundle: &BundleStatus) -> Bundle {
        let mut reasons = verdict::of_bundle(bundle);
        reasons.sort_by_key(|reason| std::cmp::Reverse(reason.health));
        let first = reasons.into_iter().next();
        Bundle {
            name: bundle.name.raw().to_owned(),
            state: bundle.state,
            content: bundle.catalog.clone(),
            is_skipped: match bundle.state {
                State::Skipped => true,
                // A restart changes no answer.
                State::Checking => bundle.outcome == Some(LastTry::Ended(Outcome::Skipped)),
                _ => false,
            },
            is_receipt: bundle.receipt_of.is_some(),
            stands_for: bundle
                .receipt_of
                .as_ref()
                .filter(|of| !of.by_hand)
                .map(|of| of.bundle.raw().to_owned()),
            health: first.as_ref().map(|reason| reason.health).unwrap_or_default(),
            why: first.map(|reason| reason.text),
        }
    }

    /// Returns true if a certain state says so: the bundle is in place and nothing is wrong with
    /// it, or it has nothing for this node.
    fn is_settled(&self) -> bool {
        matches!(self.state, State::Done | State::Skipped) && self.health == Health::Healthy
    }
}

/// The finding about a thing that has to be there.
#[derive(Debug)]
enum Finding {
    /// It is there.
    There,
    /// It was there so many seconds ago, and the daemon cannot look now.
    Held(u64),
    /// It is not there, or not known to be there.
    Not(Problem),
}

/// The reason why a thing is not there.
#[derive(Debug)]
struct Problem {
    cause: Cause,
    /// The sentence for every caller: no names and no paths.
    text: String,
    /// Names and reasons, which only root may read.
    detail: Vec<String>,
}

impl Problem {
    fn new(cause: Cause, text: impl Into<String>) -> Problem {
        Problem {
            cause,
            text: text.into(),
            detail: Vec::new(),
        }
    }

    fn with(mut self, detail: impl Into<String>) -> Problem {
        self.detail.push(detail.into());
        self
    }
}

/// Decides if the node is ready for a query, at this time since the boot of the machine. Without a
/// query, the required images decide. A query adds to them.
pub(crate) fn judge(facts: &Facts, query: &Query, now: Duration) -> Readiness {
    let silent = now.saturating_sub(facts.at);
    if silent > TRUST {
        let text = format!("the daemon has not answered for {} s", silent.as_secs());
        return Readiness::not(Cause::Daemon, text);
    }
    let case = Case::new(facts, now);
    let required = case.required();
    let mut findings: Vec<(&'static str, Finding)> = Vec::new();
    findings.extend(required.map(|finding| ("required", finding)));
    let names = query.releases.iter();
    findings.extend(names.map(|name| ("release", case.release_named(name))));
    let names = query.bundles.iter();
    findings.extend(names.map(|name| ("bundle", case.named(name))));
    if query.all_bundles {
        findings.push(("bundles", case.all()));
    }
    case.sum_up(findings)
}

/// Facts at a moment, with an index of the bundles and releases.
struct Case<'f> {
    facts: &'f Facts,
    now: Duration,
    by_name: HashMap<&'f str, &'f Bundle>,
    by_content: HashMap<&'f str, Vec<&'f Bundle>>,
    names: place::Names<'f>,
    releases: HashMap<&'f str, &'f ReleaseStatus>,
}

impl<'f> Case<'f> {
    fn new(facts: &'f Facts, now: Duration) -> Case<'f> {
        let bundles = facts.bundles.iter();
        let files = bundles.clone().filter(|bundle| !bundle.is_receipt);
        let receipts = bundles.clone().filter_map(|bundle| {
            let stands_for = bundle.stands_for.as_deref()?;
            Some((stands_for, bundle.name.as_str()))
        });
        let mut by_content: HashMap<&str, Vec<&Bundle>> = HashMap::new();
        for bundle in bundles.clone() {
            if let Some(content) = &bundle.content {
                by_content.entry(content).or_default().push(bundle);
            }
        }
        let releases = facts.releases.iter();
        Case {
            facts,
            now,
            names: place::Names::new(
                facts.folders.clone(),
                files.map(|bundle| bundle.name.as_str()),
                receipts,
            ),
            by_name: bundles.map(|bundle| (bundle.name.as_str(), bundle)).collect(),
            by_content,
            releases: releases.map(|release| (release.name.as_str(), release)).collect(),
        }
    }

    /// Returns the cause of something that is under way. Without containerd nothing goes on.
    fn under_way(&self, cause: Cause) -> Cause {
        match self.facts.is_reachable {
            true => cause,
            false => Cause::Containerd,
        }
    }

    /// Returns the finding about a thing whose state is in doubt, from the time at which it was
    /// certain. `thing` is a noun in the plural.
    fn doubtful(&self, certain_at: Option<Duration>, thing: &str) -> Finding {
        let age = certain_at.and_then(|at| self.now.checked_sub(at));
        if let Some(age) = age.filter(|age| *age <= TRUST) {
            return Finding::Held(age.as_secs());
        }
        Finding::Not(match (self.facts.is_reachable, age) {
            (true, _) => Problem::new(Cause::Working, format!("the check of {thing} has not ended")),
            (false, None) => Problem::new(
                Cause::Containerd,
                format!("containerd does not answer, so {thing} are not checked"),
            ),
            (false, Some(age)) => Problem::new(
                Cause::Containerd,
                format!("containerd has not answered for {} s", age.as_secs()),
            ),
        })
    }

    fn required(&self) -> Option<Finding> {
        let Required { key, last } = self.facts.required.as_ref()?;
        if let Some(problem) = &last.problem {
            let text = "the required images cannot be checked";
            return Some(Finding::Not(Problem::new(Cause::Failed, text).with(problem)));
        }
        if !last.missing.is_empty() {
            let mut problem = Problem::new(Cause::Missing, last.summary().unwrap_or_default());
            problem.detail = last
                .missing
                .iter()
                .map(|image| Foreign::new(image.reference.as_str()).to_string())
                .collect();
            return Some(Finding::Not(problem));
        }
        let since = self.now.saturating_sub(self.facts.at);
        let is_fresh = last.doubted_for.is_none_or(|doubted| doubted + since <= TRUST);
        let is_certain = last.checked_at.is_some() && !last.is_unsure && self.facts.is_reachable;
        Some(match is_certain && is_fresh {
            true => Finding::There,
            false => {
                let certain_at = self.facts.memory.required_at(key.as_deref());
                self.doubtful(certain_at, "the required images")
            }
        })
    }

    /// Returns true if containerd is away, or if a bundle of a release is about to be compared with
    /// it. A bundle that failed in part is compared by its next import only.
    fn is_in_doubt(&self, release: &ReleaseStatus) -> bool {
        if !self.facts.is_reachable {
            return true;
        }
        let states = release
            .bundles
            .iter()
            .filter_map(|name| self.by_name.get(name.raw()));
        states.into_iter().any(|bundle| bundle.state == State::Checking)
    }

    fn release_named(&self, name: &str) -> Finding {
        match self.releases.get(name) {
            Some(release) => self.release(release),
            None => {
                let cause = self.under_way(Cause::Absent);
                let problem = Problem::new(cause, "no bundle carries a requested release");
                Finding::Not(problem.with(Foreign::new(name).to_string()))
            }
        }
    }

    fn release(&self, release: &ReleaseStatus) -> Finding {
        if self.is_in_doubt(release) {
            let certain_at = self.facts.memory.release_at(&release.name);
            return self.doubtful(certain_at, "the bundles of a requested release");
        }
        if release.in_place {
            return Finding::There;
        }
        let shown = Foreign::new(release.name.as_str()).to_string();
        let (missing, all) = (release.missing, counted(release.members, "member"));
        let text = format!("a requested release is not in place: {missing} of {all} missing");
        let problem = Problem::new(self.under_way(Cause::Absent), text);
        Finding::Not(problem.with(match &release.problem {
            Some(why) => format!("{shown}: {why}"),
            None => shown,
        }))
    }

    /// Returns the finding about a bundle by its name, its path or its content digest.
    fn named(&self, typed: &str) -> Finding {
        let shown = Foreign::new(typed).to_string();
        if basics::digest::parse(typed).is_ok() {
            let with = self.by_content.get(typed).into_iter().flatten();
            let best = with.map(|bundle| self.requested(bundle)).min_by_key(rank);
            return best.unwrap_or_else(|| {
                let cause = self.under_way(Cause::Absent);
                Finding::Not(Problem::new(cause, "no bundle has a requested content").with(shown))
            });
        }
        let Ok(names) = self.names.meant(typed) else {
            let text = "a requested name is that of several bundles";
            return Finding::Not(Problem::new(Cause::Failed, text).with(shown));
        };
        let bundles = names.iter().filter_map(|name| self.by_name.get(name.as_str()));
        // The receipts of several releases may stand for bundles of one name.
        let worst = bundles.map(|bundle| self.requested(bundle)).max_by_key(rank);
        worst.unwrap_or_else(|| {
            let cause = match &self.facts.folder_problem {
                Some(_) => self.under_way(Cause::Waiting),
                None => Cause::Failed,
            };
            Finding::Not(Problem::new(cause, "a requested bundle does not exist").with(shown))
        })
    }

    /// Returns the finding about a bundle that a query names. The bundle has to bring something.
    fn requested(&self, bundle: &Bundle) -> Finding {
        if bundle.is_skipped {
            let text = "a requested bundle has nothing for this node";
            let name = Foreign::new(bundle.name.as_str()).to_string();
            return Finding::Not(Problem::new(Cause::Failed, text).with(name));
        }
        self.bundle(bundle)
    }

    fn bundle(&self, bundle: &Bundle) -> Finding {
        match bundle.state {
            State::Done | State::Skipped if bundle.is_settled() => Finding::There,
            State::Checking => self.doubtful(self.facts.memory.bundle_at(bundle), "the bundles"),
            _ => {
                let cause = match bundle.health {
                    Health::Healthy | Health::Working => self.under_way(Cause::Working),
                    Health::Waiting => self.under_way(Cause::Waiting),
                    Health::Degraded | Health::Failed => Cause::Failed,
                };
                let text = format!("a requested bundle is not in place: {}", bundle.state.as_str());
                let name = Foreign::new(bundle.name.as_str());
                Finding::Not(Problem::new(cause, text).with(match &bundle.why {
                    Some(why) => format!("{name}: {why}"),
                    None => name.to_string(),
                }))
            }
        }
    }

    /// Returns the finding about every bundle of the folders.
    fn all(&self) -> Finding {
        if let Some(problem) = &self.facts.folder_problem {
            let text = "an images folder is not read, or bundles of it are missing";
            return Finding::Not(Problem::new(self.under_way(Cause::Waiting), text).with(problem));
        }
        if self.facts.bundles.is_empty() && self.facts.required.is_none() {
            return Finding::Not(Problem::new(Cause::Absent, "there is no bundle"));
        }
        let (mut held, mut not) = (None, Vec::new());
        for bundle in &self.facts.bundles {
            match self.bundle(bundle) {
                Finding::There => {}
                Finding::Held(age) => held = held.max(Some(age)),
                Finding::Not(problem) => not.push((bundle, problem)),
            }
        }
        let Some(cause) = not.iter().map(|(_, problem)| problem.cause).max() else {
            return held.map_or(Finding::There, Finding::Held);
        };
        let all = counted(self.facts.bundles.len(), "bundle");
        let mut problem = Problem::new(cause, format!("{} of {all} not in place", not.len()));
        problem.detail = not
            .into_iter()
            .flat_map(|(bundle, problem)| match problem.detail.is_empty() {
                true => vec![Foreign::new(bundle.name.as_str()).to_string()],
                false => problem.detail,
            })
            .collect();
        Finding::Not(problem)
    }

    fn sum_up(&self, findings: Vec<(&'static str, Finding)>) -> Readiness {
        let mut readiness = self.counted();
        if findings.is_empty() {
            return readiness.because(Cause::NothingRequired, "nothing is required".to_owned(), &[]);
        }
        let (mut held, mut not) = (None, Vec::new());
        let mut asked = BTreeMap::new();
        for (kind, finding) in findings {
            *asked.entry(kind).or_insert(0_usize) += 1;
            match finding {
                Finding::There => {}
                Finding::Held(age) => held = held.max(Some(age)),
                Finding::Not(problem) => {
                    readiness.name(kind, &problem.detail);
                    not.push(problem);
                }
            }
        }
        let Some(first) = not.first() else {
            return readiness.ready(held, &asked);
        };
        let text = match not.len() - 1 {
            0 => first.text.clone(),
            more => format!("{} (and {more} more)", first.text),
        };
        readiness.because(first.cause, text, &first.detail)
    }

    /// Returns the numbers of the node.
    fn counted(&self) -> Readiness {
        let of = |state: State| {
            let bundles = self.facts.bundles.iter();
            bundles
                .filter(|bundle| bundle.state == state && bundle.is_settled())
                .count()
        };
        let held = self.facts.bundles.iter().filter(|bundle| {
            bundle.state == State::Checking && matches!(self.bundle(bundle), Finding::Held(_))
        });
        let releases = self.facts.releases.iter();
        let in_place = releases.filter(|release| !matches!(self.release(release), Finding::Not(_)));
        Readiness {
            required: self.facts.required.as_ref().map(|required| RequiredCount {
                images: required.last.references,
                missing: required.last.missing.len(),
            }),
            bundles: Some(BundleCount {
                all: self.facts.bundles.len(),
                in_place: of(State::Done) + held.count(),
                skipped: of(State::Skipped),
            }),
            releases: Some(ReleaseCount {
                all: self.facts.releases.len(),
                in_place: in_place.count(),
            }),
            ..Readiness::default()
        }
    }
}

/// Returns the order of findings about several bundles, the best one first.
fn rank(finding: &Finding) -> (u64, Option<Cause>) {
    match finding {
        Finding::There => (0, None),
        Finding::Held(age) => (age.saturating_add(1), None),
        Finding::Not(problem) => (u64::MAX, Some(problem.cause)),
    }
}

#[cfg(test)]
mod tests;
