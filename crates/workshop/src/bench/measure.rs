//! Measures a run: time, processor time and memory of both sides, and containerd's write
//! transactions.
//!
//! The figures come from the kernel's own accounts and from the database itself. So a measurement
//! costs almost nothing and needs no tracer.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use lab::Containerd;
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
use serde::{Deserialize, Serialize};

/// Time from the start of the processes to the first look at their memory. The kernel keeps the
/// peak of a living process. So each later look may wait for a twentieth of the time so far, since
/// a look takes processor time.
const LOOK: Duration = Duration::from_millis(4);

/// Clock ticks in a second. The kernel has reported 100 to programs on every architecture for
/// twenty years (time(7)).
const TICKS: f64 = 100.0;

/// The cost of one run.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(super) struct Sample {
    /// Time from start to end, in seconds.
    pub(super) wall: f64,
    /// Processor time of the started processes, in seconds.
    pub(super) cpu: f64,
    /// Largest resident size of any of these processes, in MiB.
    pub(super) peak: f64,
    /// Processor time of containerd in the same time, in seconds.
    pub(super) server_cpu: f64,
    /// Largest resident size of containerd in the same time, in MiB.
    pub(super) server_peak: f64,
    /// Write transactions of containerd's metadata database in the same time.
    pub(super) transactions: f64,
    /// Time until the first image had its record and its snapshot, in seconds. Zero if the scenario
    /// does not measure it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(super) first: f64,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(seconds: &f64) -> bool {
    *seconds == 0.0
}

/// Runs commands to their end. Each reads the output of the command before.
pub(super) fn pipeline(containerd: &Containerd, commands: Vec<Command>) -> Result<Sample> {
    around(containerd, || run(commands))
}

/// Does the same without measuring containerd.
pub(super) fn run(commands: Vec<Command>) -> Result<Sample> {
    let started = Instant::now();
    let mut children = start(commands)?;
    let pids: Vec<_> = children.iter().map(Child::id).collect();
    let (usage, peak) = while_looking_at(&pids, || end(&mut children));
    let cpu = usage?;
    Ok(Sample {
        wall: started.elapsed().as_secs_f64(),
        cpu,
        peak: mib(peak),
        ..Sample::default()
    })
}

/// Measures containerd while `work` runs. `work` returns its own time.
pub(super) fn around(containerd: &Containerd, work: impl FnOnce() -> Result<Sample>) -> Result<Sample> {
    let server = Server::of(containerd)?;
    Ok(server.since(work()?))
}

fn start(commands: Vec<Command>) -> Result<Vec<Child>> {
    let last = commands.len() - 1;
    let mut children: Vec<Child> = Vec::new();
    for (number, mut command) in commands.into_iter().enumerate() {
        let input = children.last_mut().and_then(|child| child.stdout.take());
        command.stdin(input.map_or_else(Stdio::null, Stdio::from));
        command.stdout(if number == last {
            Stdio::null()
        } else {
            Stdio::piped()
        });
        command.stderr(Stdio::inherit());
        let child = command
            .spawn()
            .with_context(|| format!("cannot run {}", command.get_program().display()))?;
        children.push(child);
    }
    Ok(children)
}

/// Waits for processes to end, and returns the sum of their processor time in seconds.
fn end(children: &mut [Child]) -> Result<f64> {
    let mut cpu = 0.0;
    for child in children {
        // The account of an ended process stays readable until its parent waits for it.
        let pid = Pid::from_child(child);
        waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT)?;
        cpu += cpu_of(child.id())?;
        let status = child.wait()?;
        if !status.success() {
            bail!("a measured command failed ({status})");
        }
    }
    Ok(cpu)
}

/// Runs `work` and returns the largest resident size of the processes in that time, in KiB.
fn while_looking_at<T>(pids: &[u32], work: impl FnOnce() -> T) -> (T, u64) {
    let (is_over, peak) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            let started = Instant::now();
            while !is_over.load(Ordering::Relaxed) {
                for pid in pids {
                    peak.fetch_max(peak_of(*pid).unwrap_or(0), Ordering::Relaxed);
                }
                thread::sleep(LOOK.max(started.elapsed() / 20));
            }
        });
        let done = work();
        is_over.store(true, Ordering::Relaxed);
        (done, peak.load(Ordering::Relaxed))
    })
}

/// The state of containerd before a run.
struct Server {
    pid: u32,
    cpu: f64,
    database: PathBuf,
    transactions: u64,
}

impl Server {
    fn of(containerd: &Containerd) -> Result<Self> {
        let pid = containerd.pid().context("containerd does not run")?;
        // The kernel counts the peak from here on (proc(5)).
        fs::write(format!("/proc/{pid}/clear_refs"), "5")?;
        let database = containerd.root().join("io.containerd.metadata.v1.bolt/meta.db");
        Ok(Self {
            cpu: cpu_of(pid)?,
            transactions: transactions_of(&database)?,
            pid,
            database,
        })
    }

    fn since(&self, sample: Sample) -> Sample {
        let transactions = transactions_of(&self.database).map_or(0, |now| now - self.transactions);
        Sample {
            server_cpu: cpu_of(self.pid).map_or(0.0, |now| now - self.cpu),
            server_peak: mib(peak_of(self.pid).unwrap_or(0)),
            #[allow(clippy::cast_precision_loss, reason = "a few thousand")]
            transactions: transactions as f64,
            ..sample
        }
    }
}

/// Returns the processor time of a process and its ended children in seconds, to a hundredth.
pub(super) fn cpu_of(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field is the name in parentheses, which may contain any character.
    let fields: Vec<_> = stat
        .rsplit_once(')')
        .map(|(_, rest)| rest.split_whitespace().collect())
        .unwrap_or_default();
    let field = |number: usize| fields.get(number - 3).and_then(|text| text.parse::<f64>().ok());
    // utime, stime, and the same of the children that it has waited for (proc(5)).
    let times: Option<Vec<_>> = (14..=17).map(field).collect();
    let times = times.with_context(|| format!("cannot read the kernel's account of process {pid}"))?;
    Ok(times.iter().sum::<f64>() / TICKS)
}

/// Returns the largest resident size of a process so far, in KiB.
pub(super) fn peak_of(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
pub(super) fn mib(kib: u64) -> f64 {
    kib as f64 / 1024.0
}

/// Returns the number of write transactions that a bolt database has committed in its life.
///
/// The file starts with two meta pages. Each has the number of the transaction that wrote it. The
/// younger page counts (bbolt, `meta` in `internal/common/meta.go`: 16 bytes of page header, then
/// the number at byte 48).
fn transactions_of(database: &Path) -> Result<u64> {
    let file = File::open(database).with_context(|| format!("cannot read {}", database.display()))?;
    let page_size = u64::from(u32::from_le_bytes(read_at(&file, 16 + 8)?));
    let mut number = 0;
    for page in 0..2 {
        number = number.max(u64::from_le_bytes(read_at(&file, page * page_size + 16 + 48)?));
    }
    Ok(number)
}

fn read_at<const LENGTH: usize>(file: &File, offset: u64) -> Result<[u8; LENGTH]> {
    let mut bytes = [0; LENGTH];
    file.read_exact_at(&mut bytes, offset)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn the_transactions_of_a_database_are_those_of_its_younger_meta_page() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut bytes = vec![0; 8192];
        bytes[24..28].copy_from_slice(&4096_u32.to_le_bytes());
        bytes[64..72].copy_from_slice(&7_u64.to_le_bytes());
        bytes[4096 + 64..4096 + 72].copy_from_slice(&8_u64.to_le_bytes());
        fs::write(file.path(), bytes).unwrap();
        assert_eq!(transactions_of(file.path()).unwrap(), 8);
    }

    #[test]
    fn processor_time_and_memory_of_an_ended_process_are_known() {
        let mut sum = Command::new("sh");
        sum.args(["-c", "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done"]);
        let mut children = start(vec![sum]).unwrap();
        let pids: Vec<_> = children.iter().map(Child::id).collect();
        let (cpu, peak) = while_looking_at(&pids, || end(&mut children).unwrap());
        assert!(cpu > 0.0);
        assert!(peak > 100, "{peak} KiB");
    }
}
