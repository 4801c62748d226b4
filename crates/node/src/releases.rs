//! Judges the releases that bundles carry: a release is in place only if every member is.
//!
//! Pure: the ledger and the states of the bundles go in. An absent, unknown or contradictory list
//! is never in place. docs/bundles.md, "Releases", has the rules for operators.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use basics::Foreign;
use bundle::{Catalog, Member, RawName};
use import::{Pattern, Selection, Verdict};
use oci_spec::image::Digest;
use platforms::Wanted;

use crate::decide::desired;
use crate::settings::{Settings, Signatures};
use crate::state::ledger::{self, CarriedRelease, Entry, ImageEntry, Ledger};
use crate::status::{BundleStatus, ReleaseStatus, State};

/// Most members that a release names as missing. A thousand may be missing at once.
const MOST_NAMED: usize = 10;

/// The settings of a node that decide about releases.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rules<'s> {
    signatures: Option<Signatures>,
    /// Images that the operator excludes.
    exclude: &'s [Pattern],
}

impl<'s> Rules<'s> {
    /// Returns the rules in the settings of a node.
    pub fn of(settings: &'s Settings) -> Rules<'s> {
        Rules {
            signatures: settings.signatures,
            exclude: &settings.exclude,
        }
    }
}

/// A bundle that names a release.
#[derive(Clone, Copy)]
struct Carrier<'a> {
    entry: &'a Entry,
    release: &'a CarriedRelease,
    /// `None` for a bundle that is not in its folder any more.
    status: Option<&'a BundleStatus>,
}

impl Carrier<'_> {
    fn name(&self) -> Foreign {
        Foreign::file_name(&self.entry.file)
    }

    /// Returns true if the word of the ledger on its images holds now.
    fn is_settled(&self) -> bool {
        let state = self.status.map(|status| status.state);
        matches!(state, Some(State::Done | State::Skipped))
    }

    fn state(&self) -> &'static str {
        self.status.map_or("gone", |status| status.state.as_str())
    }

    /// Returns true if a signature of a trusted key admits it.
    fn is_signed(&self) -> bool {
        self.entry.signers().next().is_some()
    }
}

/// Returns the releases that the bundles of a node name, by name. A bundle whose file is gone, or
/// that a rule refuses, names none.
///
/// With `signatures: require`, only bundles that a trusted key admits count. With `if-present`,
/// bundles without a signature do not count beside bundles with one.
pub fn releases(ledger: &Ledger, bundles: &[BundleStatus], rules: Rules<'_>) -> Vec<ReleaseStatus> {
    let by_label: HashMap<&str, &BundleStatus> =
        bundles.iter().map(|bundle| (bundle.name.raw(), bundle)).collect();
    let mut carriers: BTreeMap<&str, Vec<Carrier<'_>>> = BTreeMap::new();
    for entry in ledger.entries().into_iter().filter(|entry| entry.is_vouching()) {
        let Some(release) = entry.release() else {
            continue;
        };
        let status = by_label.get(ledger::label_name(&entry.file).as_str()).copied();
        let is_unadmitted = status.is_some_and(|status| status.unadmitted.is_some());
        let is_required = rules.signatures == Some(Signatures::Require);
        let carrier = Carrier {
            entry,
            release,
            status,
        };
        if !is_unadmitted && (!is_required || carrier.is_signed()) {
            carriers.entry(&release.name).or_default().push(carrier);
        }
    }
    if carriers.is_empty() {
        return Vec::new();
    }
    let node = Node::of(ledger, bundles, rules);
    let judged = carriers.into_iter().map(|(name, mut carriers)| {
        if rules.signatures.is_some() && carriers.iter().any(Carrier::is_signed) {
            carriers.retain(Carrier::is_signed);
        }
        carriers.sort_by_key(Carrier::name);
        let mut names: Vec<Foreign> = carriers.iter().map(Carrier::name).collect();
        names.dedup();
        let judged = node.judge(&carriers);
        ReleaseStatus {
            name: name.to_owned(),
            bundles: names,
            ..judged
        }
    });
    judged.collect()
}

/// Returns the members of a bundle's release of which it has nothing for this node.
pub(crate) fn skipped(catalog: &Catalog, selection: &Selection) -> Vec<ImageEntry> {
    let of_choice = selection
        .choices
        .iter()
        .filter_map(|choice| match choice.verdict {
            Verdict::Skip(_) => Some(choice.target.digest()),
            Verdict::Take(_) | Verdict::Forbidden(_) | Verdict::Broken(_) => None,
        });
    let skipped: HashSet<&Digest> = of_choice.collect();
    // The list has members of other bundles, too.
    let names = catalog.images.iter().flat_map(|image| &image.names);
    let here: HashSet<&str> = names.map(RawName::as_str).collect();
    members_that(catalog, |member| {
        skipped.contains(&member.digest) && here.contains(member.name.as_str())
    })
}

/// Returns the same by the receipt of the bundle, which does not describe these members. Its word
/// holds while the node takes the same platforms.
pub(crate) fn skipped_by_receipt(catalog: &Catalog, wanted: &Wanted) -> Vec<ImageEntry> {
    let skipped = catalog.receipt().and_then(|receipt| receipt.skipped.as_ref());
    let Some(skipped) = skipped.filter(|skipped| skipped.platforms == platforms_of(wanted)) else {
        return Vec::new();
    };
    let names: HashSet<&str> = skipped.names.iter().map(String::as_str).collect();
    members_that(catalog, |member| names.contains(member.name.as_str()))
}

/// Returns the platforms of a node, as a receipt has them.
pub(crate) fn platforms_of(wanted: &Wanted) -> String {
    match wanted {
        Wanted::All { .. } => "all".to_owned(),
        Wanted::Platforms(matchers) => {
            let lists: BTreeSet<String> = matchers.iter().map(ToString::to_string).collect();
            lists.into_iter().collect::<Vec<_>>().join("; ")
        }
    }
}

fn members_that(catalog: &Catalog, is_meant: impl Fn(&Member) -> bool) -> Vec<ImageEntry> {
    let members = catalog
        .release
        .iter()
        .filter_map(|release| release.members.as_ref().ok());
    let members = members.flat_map(|members| members.all());
    members
        .filter(|member| is_meant(member))
        .map(|member| ImageEntry {
            name: member.name.clone(),
            target: member.digest.clone(),
        })
        .collect()
}

/// The names of a node, as its bundles leave them.
struct Node<'a> {
    ledger: &'a Ledger,
    /// The image that each name belongs to, with its bundle.
    desired: BTreeMap<&'a str, (&'a Digest, &'a Entry)>,
    excluded: BTreeSet<&'a str>,
    /// Names that other programs moved.
    moved: HashSet<&'a str>,
}

impl<'a> Node<'a> {
    fn of(ledger: &'a Ledger, bundles: &'a [BundleStatus], rules: Rules<'_>) -> Node<'a> {
        let desired = ledger.desired_images();
        Node {
            ledger,
            excluded: desired::excluded(desired.keys().copied(), rules.exclude),
            desired,
            moved: bundles
                .iter()
                .flat_map(|bundle| &bundle.moved)
                .map(Foreign::raw)
                .collect(),
        }
    }

    /// Judges a release by the bundles that name it.
    fn judge(&self, carriers: &[Carrier<'_>]) -> ReleaseStatus {
        let not_in_place = |problem: String| ReleaseStatus {
            problem: Some(problem),
            ..ReleaseStatus::default()
        };
        let mut lists: Vec<(&Digest, &Carrier<'_>)> = Vec::new();
        for carrier in carriers {
            match &carrier.release.list {
                Ok(list) => lists.push((list, carrier)),
                Err(problem) => return not_in_place(format!("{}: {problem}", carrier.name())),
            }
        }
        let Some((list, first)) = lists.first().copied() else {
            return not_in_place("no bundle carries its list".to_owned());
        };
        if let Some((_, other)) = lists.iter().find(|(other, _)| *other != list) {
            return not_in_place(format!(
                "{} and {} carry different lists",
                first.name(),
                other.name()
            ));
        }
        let members = self.ledger.list(list).unwrap_or_default();
        if members.is_empty() {
            return not_in_place(format!("the list of {} is not known", first.name()));
        }
        let brought = Brought::by(carriers);
        let mut judged = ReleaseStatus {
            members: members.len(),
            ..ReleaseStatus::default()
        };
        let mut is_held = true;
        for member in members {
            let why = match self.stand(member, &brought) {
                Stand::InPlace => continue,
                Stand::Behind(why) => why,
                Stand::Missing(why) => {
                    is_held = false;
                    why
                }
            };
            let name = Foreign::new(member.name.clone());
            judged.missing += 1;
            judged.problem.get_or_insert_with(|| format!("{name}: {why}"));
            if judged.missing <= MOST_NAMED {
                judged.missing_names.push(name);
            }
        }
        judged.in_place = judged.missing == 0;
        judged.kept = !judged.in_place && is_held;
        if let Some(first) = judged.problem.take() {
            let of = match judged.members {
                1 => "1 member is".to_owned(),
                count => format!("{count} members are"),
            };
            judged.problem = Some(format!("{} of {of} not in place: {first}", judged.missing));
        }
        judged
    }

    fn stand(&self, member: &ImageEntry, brought: &Brought<'_, '_>) -> Stand {
        let name = member.name.as_str();
        let key = (name, &member.target);
        if brought.skipped.contains(&key) {
            return Stand::InPlace;
        }
        let with = brought.images.get(&key);
        let Some(with) = with else {
            return Stand::Missing(match brought.unsettled {
                Some(carrier) => in_state(carrier),
                None => format!("no bundle of the release has it with {}", member.target),
            });
        };
        if self.excluded.contains(name) {
            return Stand::Missing("the configuration excludes it".to_owned());
        }
        if self.moved.contains(name) {
            return Stand::Missing("another program moved its record".to_owned());
        }
        let owner = match self.desired.get(name) {
            Some((target, entry)) if **target != member.target => {
                let owner = Foreign::file_name(&entry.file);
                format!("the name belongs to {target} of {owner}")
            }
            Some(_) if with.is_settled() => return Stand::InPlace,
            Some(_) => return Stand::Missing(in_state(with)),
            None => return Stand::Missing("no bundle vouches for the name".to_owned()),
        };
        match with.is_settled() {
            true => Stand::Behind(owner),
            false => Stand::Missing(owner),
        }
    }
}

/// A member of a release on this node. If it is not in place, there is a reason.
enum Stand {
    InPlace,
    /// A bundle of the release has it in place, and a later bundle has its name.
    Behind(String),
    Missing(String),
}

/// The images that the bundles of a release bring. A list has many members, and each asks for one.
struct Brought<'c, 'a> {
    /// The images, each with a bundle that has it. A bundle whose word holds goes first.
    images: HashMap<(&'a str, &'a Digest), &'c Carrier<'a>>,
    /// The members of which a bundle has nothing for this node.
    skipped: HashSet<(&'a str, &'a Digest)>,
    /// A bundle whose images are not known yet.
    unsettled: Option<&'c Carrier<'a>>,
}

impl<'c, 'a> Brought<'c, 'a> {
    fn by(carriers: &'c [Carrier<'a>]) -> Brought<'c, 'a> {
        let mut brought = Brought {
            images: HashMap::new(),
            skipped: HashSet::new(),
            unsettled: carriers.iter().find(|carrier| !carrier.is_settled()),
        };
        let key = |image: &'a ImageEntry| (image.name.as_str(), &image.target);
        for carrier in carriers {
            let imported = carrier.entry.imported.iter();
            for image in imported.flat_map(|imported| &imported.images) {
                let with = brought.images.entry(key(image)).or_insert(carrier);
                if carrier.is_settled() {
                    *with = carrier;
                }
            }
            if carrier.is_settled() {
                brought.skipped.extend(carrier.release.skipped.iter().map(key));
            }
        }
        brought
    }
}

fn in_state(carrier: &Carrier<'_>) -> String {
    format!("{} is {}", carrier.name(), carrier.state())
}

#[cfg(test)]
mod tests;
