//! The work of jobs: one file's way into containerd, in tasks outside the loop.

use std::collections::{BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::sync::Arc;

use import::{BundleResult, Intent};
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};

use super::job::{self, Opened, Order, Pulled, Ready};
use super::journal;
use crate::decide::coexistence::{Repaired, repaired};
use crate::decide::record::Came;
use crate::progress::{Counters, Mark};
use crate::state::crash;

/// The result of a task.
enum Done {
    Opened(Opened),
    Imported(Box<io::Result<Result<job::Ended, import::Error>>>),
    Pulled(Pulled),
    Nothing,
}

/// One job.
struct Running {
    order: Option<Arc<Order>>,
    /// The progress of its import.
    counters: Arc<Counters>,
    task: AbortHandle,
    /// The bundle that the job has read.
    bundle: Option<Ready>,
    /// The list that the job has read.
    list: String,
    report: Option<Report>,
}

/// The report of a finished job.
struct Report {
    report: BundleResult,
    /// Images that it completed, and that another importer had recorded before they were whole.
    repaired: Vec<Repaired>,
}

/// The jobs, by file name.
#[derive(Default)]
pub(super) struct Work {
    tasks: JoinSet<Done>,
    running: HashMap<OsString, Running>,
}

impl Work {
    /// Starts a job, which checks and reads its file.
    pub(super) fn start(&mut self, order: Arc<Order>, file: File, is_checked: bool) {
        let name = order.name.clone();
        let open = job::open(Arc::clone(&order), file, is_checked);
        let task = self.tasks.spawn(async { Done::Opened(open.await) });
        self.insert(name, Some(order), task);
    }

    /// Starts a job that ends at once, like a job whose work was dropped.
    pub(super) fn start_nothing(&mut self, name: OsString) {
        let task = self.tasks.spawn(async { Done::Nothing });
        self.insert(name, None, task);
    }

    fn insert(&mut self, name: OsString, order: Option<Arc<Order>>, task: AbortHandle) {
        let running = Running {
            order,
            counters: Arc::default(),
            task,
            bundle: None,
            list: String::new(),
            report: None,
        };
        self.running.insert(name, running);
    }

    /// Imports the bundle that a job has read. It may not have the names in `withheld`.
    pub(super) fn import(&mut self, name: &OsStr, intent: Intent, withheld: BTreeSet<String>) {
        let Some(running) = self.running.get_mut(name) else {
            return;
        };
        let (Some(order), Some(bundle)) = (running.order.clone(), running.bundle.clone()) else {
            return;
        };
        let counters = Arc::clone(&running.counters);
        let import = job::import_with_evidence(order, bundle, intent, withheld, counters);
        running.task = self.tasks.spawn(async { Done::Imported(Box::new(import.await)) });
    }

    /// Pulls the images of the list that a job has read.
    pub(super) fn pull(&mut self, name: &OsStr) {
        let Some(running) = self.running.get_mut(name) else {
            return;
        };
        let Some(order) = running.order.clone() else {
            return;
        };
        let pull = job::pull(order, std::mem::take(&mut running.list));
        running.task = self.tasks.spawn(async { Done::Pulled(pull.await) });
    }

    /// Drops the work of a job. The blobs that it has moved stay under its lease.
    pub(super) fn abort(&self, name: &OsStr) {
        if let Some(running) = self.running.get(name) {
            running.task.abort();
        }
    }

    /// Removes the jobs that have ended.
    pub(super) fn retain(&mut self, is_running: impl Fn(&OsStr) -> bool) {
        self.running.retain(|name, _| is_running(name));
    }

    /// Returns how far each job has come.
    pub(super) fn marks(&self) -> impl Iterator<Item = (OsString, Mark)> {
        let mark = |(name, running): (&OsString, &Running)| (name.clone(), running.counters.mark());
        self.running.iter().map(mark)
    }

    /// Returns the orders of the jobs, with the progress of each.
    pub(super) fn orders(&self) -> impl Iterator<Item = (&Order, &Counters)> {
        let orders = self.running.values();
        orders.filter_map(|running| Some((&**running.order.as_ref()?, &*running.counters)))
    }

    /// Returns the report of a file's finished job.
    pub(super) fn report_of(&self, name: &OsStr) -> Option<&BundleResult> {
        let report = self.running.get(name)?.report.as_ref()?;
        Some(&report.report)
    }

    /// Writes the report of a file's import into the log.
    pub(super) fn report(&self, name: &OsStr, is_told: bool) {
        let report = self.running.get(name).and_then(|running| running.report.as_ref());
        if let Some(Report { report, repaired }) = report {
            journal::log_report(name, report, is_told);
            journal::log_repairs(name, repaired);
        }
    }

    /// Waits for the next result of a job, and returns it with the job's name. Waits forever while
    /// nothing runs. Safe to cancel.
    pub(super) async fn next(&mut self) -> (OsString, Came) {
        match self.tasks.join_next_with_id().await {
            None => std::future::pending().await,
            Some(Ok((id, done))) => {
                let name = self.name_of(id);
                let came = self.take_in(&name, done);
                (name, came)
            }
            Some(Err(error)) => (self.name_of(error.id()), end_of(error)),
        }
    }

    fn name_of(&self, id: Id) -> OsString {
        let found = self.running.iter().find(|(_, running)| running.task.id() == id);
        found
            .map(|(name, _)| name.clone())
            .expect("a job stays in the list until its task is joined")
    }

    /// Keeps the parts of a result that the job needs next. Returns the facts for the decision.
    fn take_in(&mut self, name: &OsStr, done: Done) -> Came {
        let Some(running) = self.running.get_mut(name) else {
            return Came::Dropped;
        };
        let Some(order) = &running.order else {
            return Came::Dropped;
        };
        match done {
            Done::Nothing => Came::Dropped,
            Done::Opened(Opened::NotNow) => Came::NotNow,
            Done::Opened(Opened::Unverified(failure)) => Came::Unverified(failure),
            Done::Opened(Opened::NotKept(error)) => Came::NotKept(error.to_string()),
            Done::Opened(Opened::Read {
                found: Ok(read),
                is_reserved,
            }) => {
                let found = job::found(&read, order, is_reserved);
                running.bundle = Some(Ready {
                    bundle: read.bundle,
                    policy: read.policy,
                    evidence: read.evidence,
                });
                Came::Found(Box::new(found))
            }
            Done::Opened(Opened::Read {
                found: Err(error),
                is_reserved,
            }) => {
                let report = BundleResult::unreadable(&order.path(), &error, order.elapsed());
                let bad = job::bad(&error, is_reserved, &report);
                running.report = Some(Report::of(report));
                Came::Bad(bad)
            }
            Done::Opened(Opened::List(Ok(text))) => {
                let catalog = job::list_digest(&text);
                running.list = text;
                Came::List {
                    distrust: job::distrust(order, &catalog),
                    catalog,
                }
            }
            Done::Opened(Opened::List(Err(error))) => Came::BadList(error.to_string()),
            Done::Imported(result) => match *result {
                Err(error) => Came::NotKept(error.to_string()),
                Ok(Ok(job::Ended { imported, kept })) => {
                    let bundle = running.bundle.as_ref().map(|ready| &*ready.bundle);
                    let landed = job::landed(&imported, bundle, order, kept);
                    running.report = Some(Report {
                        repaired: repaired(&imported.plan, &imported.result),
                        report: imported.result,
                    });
                    landed.map_or(Came::Dropped, |landed| Came::Imported(Box::new(landed)))
                }
                Ok(Err(error)) => {
                    let report = BundleResult::untried(&order.path(), &error, order.elapsed());
                    let stop = job::stop(&error, &report);
                    running.report = Some(Report::of(report));
                    Came::Untried(stop)
                }
            },
            Done::Pulled(Pulled { images, problems }) => Came::Pulled { images, problems },
        }
    }
}

impl Report {
    fn of(report: BundleResult) -> Report {
        Report {
            report,
            repaired: Vec::new(),
        }
    }
}

/// The end of a task that panicked or was dropped.
fn end_of(error: JoinError) -> Came {
    match error.try_into_panic() {
        Ok(panic) => Came::Panicked {
            cause: crash::panic_text(&*panic),
            program: crash::program().ok(),
        },
        Err(_) => Came::Dropped,
    }
}

#[cfg(test)]
mod tests {
    use super::super::job::joined;
    use super::*;

    #[tokio::test]
    async fn a_job_that_panics_comes_back_with_why_and_one_that_is_dropped_with_nothing() {
        let mut tasks: JoinSet<()> = JoinSet::new();
        tasks.spawn(async {
            let read = tokio::task::spawn_blocking(|| panic!("the 7th entry\nis odd"));
            joined::<()>(read.await);
        });
        let Came::Panicked { cause, .. } = end_of(tasks.join_next().await.unwrap().unwrap_err()) else {
            panic!("another end")
        };
        assert!(
            cause.starts_with("a panic: the 7th entry") && !cause.contains('\n'),
            "{cause}"
        );
        tasks.spawn(std::future::pending()).abort();
        let end = end_of(tasks.join_next().await.unwrap().unwrap_err());
        assert!(matches!(end, Came::Dropped));
    }
}
