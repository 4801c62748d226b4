//! A plan as text: the lines of a dry run.

use std::collections::HashSet;
use std::fmt;

use basics::{bytes, counted};

use super::{BlobAction, BlobStep, ImagePlan, Plan, RecordAction, RecordStep};
use crate::labels::LabelChanges;

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut seen = HashSet::new();
        for image in &self.images {
            write!(f, "{image}")?;
            for step in &image.blobs {
                let again = !seen.insert(&step.digest);
                writeln!(f, "  {}", BlobLine { step, again })?;
            }
            if image.unpack {
                writeln!(f, "  unpack  its layers")?;
            }
            for record in &image.records {
                writeln!(f, "  {record}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for ImagePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self
            .records
            .first()
            .map_or("(no record)", |record| record.name.as_str());
        writeln!(f, "{name} ({})", self.platforms.join(", "))
    }
}

struct BlobLine<'a> {
    step: &'a BlobStep,
    again: bool,
}

impl fmt::Display for BlobLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = match self.step.action {
            BlobAction::Send if self.again => "shared ",
            BlobAction::Send => "send   ",
            BlobAction::Hold | BlobAction::Leave => "present",
        };
        write!(f, "{verb} {} {}", self.step.digest, bytes(self.step.size))?;
        match self.step.lacking {
            0 => Ok(()),
            labels => write!(f, ", {}", counted(labels, "label")),
        }
    }
}

impl fmt::Display for RecordStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, target, action } = self;
        let digest = target.digest();
        match action {
            RecordAction::Create(_) => write!(f, "create  {name} -> {digest}"),
            RecordAction::Retarget { from, .. } => write!(f, "move    {name} from {from} -> {digest}"),
            RecordAction::Relabel(changes) => write!(f, "label   {name}: {}", changed_keys(changes)),
            RecordAction::Unchanged => write!(f, "keep    {name} -> {digest}"),
            RecordAction::Conflict { with, .. } => {
                write!(f, "leave   {name}: it belongs to another program, {with}")
            }
            RecordAction::Leave(why) => write!(f, "leave   {name}: {why}"),
        }
    }
}

fn changed_keys(changes: &LabelChanges) -> String {
    let sign = |(key, value): (&String, &Option<String>)| {
        format!("{}{key}", if value.is_some() { '+' } else { '-' })
    };
    changes.iter().map(sign).collect::<Vec<_>>().join(" ")
}
