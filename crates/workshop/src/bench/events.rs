//! containerd's events about records and snapshots, each with the time of its arrival.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::Bench;
use super::trees::Runnable;

/// Longest time until an event arrives.
const WITHIN: Duration = Duration::from_secs(120);

/// A subscription to the events.
pub(super) struct Events {
    child: Child,
    told: Receiver<(Instant, Event)>,
}

/// An event that the bench waits for.
#[derive(Debug, PartialEq, Eq)]
enum Event {
    /// A new image record of this name.
    Record(String),
    /// A finished snapshot of this name.
    Snapshot(String),
    /// A new namespace.
    Namespace,
}

impl Event {
    /// Reads a line of `ctr events`: time, namespace, topic, and the event as JSON.
    fn of(line: &str) -> Option<Self> {
        #[derive(Deserialize)]
        struct Named {
            name: String,
        }
        let (before, json) = line.split_once(" {")?;
        let named: Named = serde_json::from_str(&format!("{{{json}")).ok()?;
        match before.rsplit(' ').next()? {
            // CRI adds records named after the ids of images. The bench does not wait for those.
            "/images/create" if !named.name.starts_with("sha256:") => Some(Self::Record(named.name)),
            "/snapshot/commit" => Some(Self::Snapshot(named.name)),
            "/namespaces/create" => Some(Self::Namespace),
            _ => None,
        }
    }
}

impl Events {
    /// Subscribes, and waits until the subscription works.
    pub(super) fn of(bench: &Bench) -> Result<Self> {
        let mut child = bench
            .containerd
            .ctr_in(lab::runtime::NAMESPACE)
            .arg("events")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let output = child.stdout.take().context("the events have no output")?;
        let (teller, told) = channel();
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let arrived = Instant::now();
                if let Some(event) = Event::of(&line)
                    && teller.send((arrived, event)).is_err()
                {
                    return;
                }
            }
        });
        let events = Self { child, told };
        events.wait_until_heard(bench)?;
        Ok(events)
    }

    /// Waits until the subscription works. containerd does not repeat events for a late subscriber,
    /// so this creates namespaces until an event arrives.
    fn wait_until_heard(&self, bench: &Bench) -> Result<()> {
        let deadline = Instant::now() + WITHIN;
        while Instant::now() < deadline {
            bench.containerd.ctr(&["namespaces", "create", "airgapd-bench"])?;
            let heard = self.told.recv_timeout(Duration::from_millis(100));
            bench.containerd.ctr(&["namespaces", "remove", "airgapd-bench"])?;
            if heard.is_ok() {
                while self.told.recv_timeout(Duration::from_millis(100)).is_ok() {}
                return Ok(());
            }
        }
        bail!("containerd sent no events")
    }

    /// Waits for a number of records, and returns the time of the last.
    pub(super) fn wait_for(&self, records: usize) -> Result<Instant> {
        let mut last = Instant::now();
        let mut number = 0;
        while number < records {
            let (arrived, event) = self
                .told
                .recv_timeout(WITHIN)
                .with_context(|| format!("only {number} of {records} records have arrived"))?;
            if matches!(event, Event::Record(_)) {
                (last, number) = (arrived, number + 1);
            }
        }
        Ok(last)
    }

    /// Waits until images have their records and snapshots, and returns the time of the first
    /// image.
    pub(super) fn first_of(&self, images: &[Runnable]) -> Result<Instant> {
        let mut ready = Ready::default();
        loop {
            if let Some(first) = ready.first_of_all(images) {
                return Ok(first);
            }
            let (arrived, event) = self.told.recv_timeout(WITHIN).with_context(|| {
                let absent = images.iter().filter(|image| ready.of(image).is_none());
                let names: Vec<_> = absent.map(|image| image.name.as_str()).collect();
                format!("no record or no snapshot of {}", names.join(", "))
            })?;
            ready.note(arrived, event);
        }
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The times of records and snapshots, by name.
#[derive(Default)]
struct Ready {
    records: BTreeMap<String, Instant>,
    snapshots: BTreeMap<String, Instant>,
}

impl Ready {
    fn note(&mut self, arrived: Instant, event: Event) {
        match event {
            Event::Record(name) => self.records.insert(name, arrived),
            Event::Snapshot(name) => self.snapshots.insert(name, arrived),
            Event::Namespace => None,
        };
    }

    /// Returns the time from which a container of an image can start without unpacking.
    fn of(&self, image: &Runnable) -> Option<Instant> {
        let record = self.records.get(&image.name)?;
        Some(*record.max(self.snapshots.get(&image.snapshot)?))
    }

    /// Returns the time of the first image, or `None` until all of them are ready.
    fn first_of_all(&self, images: &[Runnable]) -> Option<Instant> {
        let times: Option<Vec<_>> = images.iter().map(|image| self.of(image)).collect();
        times?.into_iter().min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_ctr_become_events() {
        let line = |topic: &str, json: &str| format!("2026-11-30 10:00:00 +0000 UTC k8s.io {topic} {json}");
        let table = [
            (
                line("/images/create", r#"{"name":"registry.example/a:1"}"#),
                Some(Event::Record("registry.example/a:1".to_owned())),
            ),
            (line("/images/create", r#"{"name":"sha256:12"}"#), None),
            (line("/images/update", r#"{"name":"registry.example/a:1"}"#), None),
            (
                line(
                    "/snapshot/commit",
                    r#"{"key":"extract-1 sha256:ab","name":"sha256:ab"}"#,
                ),
                Some(Event::Snapshot("sha256:ab".to_owned())),
            ),
            (
                line("/snapshot/prepare", r#"{"key":"a","parent":"sha256:ab"}"#),
                None,
            ),
            (
                line("/namespaces/create", r#"{"name":"airgapd-bench"}"#),
                Some(Event::Namespace),
            ),
            ("no event".to_owned(), None),
        ];
        for (line, expected) in table {
            assert_eq!(Event::of(&line), expected, "{line}");
        }
    }

    #[test]
    fn an_image_is_runnable_from_the_later_of_its_record_and_its_snapshot() {
        let image = |name: &str, snapshot: &str| Runnable {
            name: name.to_owned(),
            snapshot: snapshot.to_owned(),
        };
        let images = [image("a", "sha256:a"), image("b", "sha256:b")];
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut ready = Ready::default();
        ready.note(at(1), Event::Record("a".to_owned()));
        ready.note(at(2), Event::Snapshot("sha256:b".to_owned()));
        ready.note(at(3), Event::Record("b".to_owned()));
        assert_eq!(ready.first_of_all(&images), None);
        ready.note(at(5), Event::Snapshot("sha256:a".to_owned()));
        assert_eq!(ready.first_of_all(&images), Some(at(3)));
    }
}
