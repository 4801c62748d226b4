//! The objections of kubelet to images that are present, by its settings and by the records of its
//! own pulls.
//!
//! The crate `requirements` has the rules. This module reads the files, and asks CRI for the ids by
//! which records are stored.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use requirements::Limits;
use requirements::kubelet::records::{self, Folder};
use requirements::kubelet::{self, Kubelet, Records, Verdict, repository};
use serde::Serialize;

use crate::cli::VerifyArgs;
use node::runtime::Containerd;
use verify::Answer;
use verify::{self, Kind, Needs, Source};

/// The settings and records of a kubelet that the command line names.
#[derive(Debug)]
pub(super) struct View {
    kubelet: Kubelet,
    records: Option<Found>,
}

#[derive(Debug)]
struct Found {
    /// `image_manager` below its root folder.
    folder: PathBuf,
    records: Records,
}

/// The objections of kubelet to all images.
#[derive(Debug, Default)]
pub(super) struct Opinion {
    /// Images that kubelet lets no pod use.
    pub(super) refused: Vec<Refused>,
    /// Settings that block images, each once.
    pub(super) warnings: Vec<String>,
}

/// An image that is present and that kubelet lets no pod use.
#[derive(Debug, Serialize)]
pub(super) struct Refused {
    /// Reference as the pod gives it, which kubelet uses.
    pub(super) reference: String,
    /// Id of the image in CRI.
    pub(super) id: String,
    /// Path of the record that causes the refusal.
    pub(super) record: String,
    pub(super) problem: String,
    /// Remedy.
    pub(super) remedy: &'static str,
    pub(super) sources: Vec<Source>,
}

/// Reads the settings and records that the command line names, and adds mistakes to the needs.
/// Returns `None` if it names no kubelet.
pub(super) fn view(args: &VerifyArgs, needs: &mut Needs) -> Option<View> {
    let (config, root) = (args.kubelet_config.as_deref(), args.kubelet_root.as_deref());
    if config.is_none() && root.is_none() {
        return None;
    }
    Some(View {
        // Without its configuration, kubelet is assumed to have the default policy.
        kubelet: config.map_or_else(Kubelet::default, |path| settings(path, needs)),
        records: root.and_then(|root| found(root, needs)),
    })
}

fn settings(path: &Path, needs: &mut Needs) -> Kubelet {
    let text = match verify::read_text(path) {
        Ok(text) => text,
        Err(mistake) => {
            needs.mistakes.push(mistake);
            return Kubelet::default();
        }
    };
    kubelet::parse(&text.text, &Limits::default()).unwrap_or_else(|problems| {
        let named = problems
            .0
            .iter()
            .map(|problem| format!("{}: {problem}", text.name));
        needs.mistakes.extend(named);
        Kubelet::default()
    })
}

fn found(root: &Path, needs: &mut Needs) -> Option<Found> {
    let folder = root.join("image_manager");
    let records = fs::metadata(root).and_then(|_| read_all(&folder));
    match records {
        Ok(Some(records)) => Some(Found { folder, records }),
        Ok(None) => {
            needs.notes.push(format!(
                "{} does not exist: no kubelet that verifies credentials has used this root folder",
                folder.display()
            ));
            None
        }
        Err(error) => {
            needs.mistakes.push(format!(
                "cannot read kubelet's records in {}: {error}",
                root.display()
            ));
            None
        }
    }
}

/// Reads all records. Returns `None` if their folder does not exist.
fn read_all(folder: &Path) -> io::Result<Option<Records>> {
    if !folder.try_exists()? {
        return Ok(None);
    }
    let mut all = Records::default();
    for kind in Folder::ALL {
        let entries = match fs::read_dir(folder.join(kind.name())) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        for entry in entries {
            let entry = entry?;
            let Some(name) = entry.file_name().to_str().map(str::to_owned) else {
                continue;
            };
            if !records::is_record(&name) || entry.file_type()?.is_dir() {
                continue;
            }
            match verify::read_text(&entry.path()) {
                Ok(text) => all.add(kind, &name, &text.text),
                // The end of a pull removes its file.
                Err(_) if !entry.path().exists() => {}
                Err(why) => all.add_unreadable(kind, &name, &why),
            }
        }
    }
    Ok(Some(all))
}

impl View {
    /// Returns true if there are records, which need the ids of images.
    fn wants_ids(&self) -> bool {
        self.records.is_some()
    }

    /// Checks the requested images against settings and records. An objection that depends on the
    /// pod becomes a warning of the image.
    pub(super) fn opinion(&self, images: &mut [Answer], ids: &HashMap<String, String>) -> Opinion {
        let mut refused = Vec::new();
        let mut objections: Vec<(String, usize)> = Vec::new();
        for image in images {
            let id = ids.get(&image.reference);
            for (given, sources) in by_spelling(image) {
                match self.verdict(&given, id) {
                    Verdict::Allowed => {}
                    Verdict::Settings(objection) => count(&mut objections, objection),
                    Verdict::Record(refusal) => {
                        let record = self.path_of(&refusal.file);
                        if !refusal.reason.is_certain() {
                            image
                                .warnings
                                .push(format!("{} (its record is {record})", refusal.reason));
                            continue;
                        }
                        refused.push(Refused {
                            reference: given,
                            id: id.cloned().unwrap_or_default(),
                            record,
                            problem: refusal.reason.to_string(),
                            remedy: REMEDY,
                            sources,
                        });
                    }
                }
            }
        }
        let text = |(objection, count)| match count {
            1 => objection,
            count => format!("{objection} ({count} references)"),
        };
        Opinion {
            refused,
            warnings: objections.into_iter().map(text).collect(),
        }
    }

    fn verdict(&self, given: &str, id: Option<&String>) -> Verdict {
        match (&self.records, id) {
            (Some(found), Some(id)) => self.kubelet.verdict(&found.records, given, id),
            // For a missing image, only the settings can be checked.
            _ => match self.kubelet.objection(repository(given)) {
                Some(objection) => Verdict::Settings(objection),
                None => Verdict::Allowed,
            },
        }
    }

    fn path_of(&self, file: &str) -> String {
        let folder = self.records.as_ref().map(|found| found.folder.join(file));
        folder.unwrap_or_else(|| file.into()).display().to_string()
    }
}

/// Remedy for every record that makes kubelet refuse an image.
const REMEDY: &str = "remove the record and restart kubelet, which keeps its records in memory";

fn count(objections: &mut Vec<(String, usize)>, objection: String) {
    match objections.iter_mut().find(|(known, _)| *known == objection) {
        Some((_, count)) => *count += 1,
        None => objections.push((objection, 1)),
    }
}

/// Returns the sources of an image, by the spelling of its name. The sandbox image is left out,
/// since containerd uses it without kubelet.
fn by_spelling(image: &Answer) -> BTreeMap<String, Vec<Source>> {
    let mut spellings: BTreeMap<String, Vec<Source>> = BTreeMap::new();
    for source in image.sources.iter().filter(|source| source.kind != Kind::Sandbox) {
        spellings
            .entry(source.given.clone())
            .or_default()
            .push(source.clone());
    }
    spellings
}

/// Returns the ids in CRI of the images that are present. The map is empty without records to look
/// up.
pub(super) async fn ids(
    view: Option<&View>,
    runtime: Option<&Containerd>,
    images: &[Answer],
) -> Result<HashMap<String, String>, containerd::Error> {
    let mut ids = HashMap::new();
    let (Some(runtime), true) = (runtime, view.is_some_and(View::wants_ids)) else {
        return Ok(ids);
    };
    let cri = runtime.client.cri();
    for image in images.iter().filter(|image| !image.is_missing()) {
        if let Some(status) = cri.image_status(&image.reference).await? {
            ids.insert(image.reference.clone(), status.id);
        }
    }
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use super::*;
    use verify::Need;
    use verify::{Inventory, answer};

    fn view_of(settings: &str) -> View {
        let text = format!("kind: KubeletConfiguration\n{settings}\n");
        View {
            kubelet: kubelet::parse(&text, &Limits::default()).unwrap(),
            records: None,
        }
    }

    fn asked_for(given: &[&str]) -> Vec<Answer> {
        let mut needs = Needs::default();
        let folder = tempfile::tempdir().unwrap();
        let list = folder.path().join("list.txt");
        fs::write(&list, given.join("\n")).unwrap();
        needs.add_list(&list);
        let nothing = Inventory::default();
        let needs: Vec<Need> = needs.merged();
        needs
            .iter()
            .map(|need| answer(need, &nothing, &nothing))
            .collect()
    }

    #[test]
    fn objections_are_told_once_however_many_images_they_concern() {
        let mut images = asked_for(&["a.test/a:1", "a.test/b:1"]);
        let always = view_of("imagePullCredentialsVerificationPolicy: AlwaysVerify");
        let told = always.opinion(&mut images, &HashMap::new()).warnings;
        assert!(told.len() == 1 && told[0].ends_with("(2 references)"), "{told:?}");
        let usual = view_of("").opinion(&mut images, &HashMap::new());
        assert!(usual.warnings.is_empty() && usual.refused.is_empty());
    }

    /// kubelet compares its list with the name as the pod has it.
    #[test]
    fn an_image_that_pods_write_in_two_ways_is_allowed_in_the_way_that_is_on_the_list() {
        let listed = view_of(
            "imagePullCredentialsVerificationPolicy: NeverVerifyAllowlistedImages\n\
             preloadedImagesVerificationAllowlist: [docker.io/library/busybox]",
        );
        let mut images = asked_for(&["busybox:1", "docker.io/library/busybox:1"]);
        assert_eq!(images.len(), 1, "it is one image");
        let told = listed.opinion(&mut images, &HashMap::new()).warnings;
        assert!(told.len() == 1 && told[0].contains("add \"busybox\""), "{told:?}");
    }
}
