//! Every way to place a file gives one import of its final content, and no import of an unfinished
//! file.
//!
//! The test runs the programs that every machine has. For others (scp, sftp, rsync, curl, the
//! uploaders of k0s) it makes the system calls that strace shows. `cargo xtask uploads` prints the
//! results as a table.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::fs::{AtFlags, CWD, FallocateFlags, Mode, OFlags, Timespec, Timestamps};
use tempfile::TempDir;

use crate::support::autopilot::Download;
use crate::support::bundles::{self, image};
use crate::support::node::Daemon;
use crate::support::{Node, Place, Target, on_the_fake, run_on, wait_until};

/// A way to place a file.
struct Way {
    name: &'static str,
    /// True if an older bundle has the name already.
    over: bool,
    place: fn(&Spot) -> Placed,
}

type Placed = std::io::Result<()>;

/// The file to place and the paths.
struct Spot {
    /// Final path of the file.
    to: PathBuf,
    /// Part of all names that this way uses in the folder.
    mark: String,
    /// The bundle, in another folder of the same file system.
    from: PathBuf,
    /// The bundle on another file system, if there is one.
    from_afar: PathBuf,
    bytes: Vec<u8>,
}

const WAYS: &[Way] = &[
    Way {
        name: "cp",
        over: false,
        place: |at| run("cp", [&at.from, &at.to]),
    },
    Way {
        name: "cp, over an older one",
        over: true,
        place: |at| run("cp", [&at.from, &at.to]),
    },
    Way {
        name: "cp -p",
        over: true,
        place: |at| run("cp", [Path::new("-p"), &at.from, &at.to]),
    },
    Way {
        name: "cat >",
        over: false,
        place: |at| shell("cat \"$1\" > \"$2\"", at),
    },
    Way {
        name: "dd",
        over: false,
        place: |at| shell("dd if=\"$1\" of=\"$2\" bs=4k status=none", at),
    },
    Way {
        name: "install -m",
        over: false,
        place: |at| shell("install -m 0600 \"$1\" \"$2\"", at),
    },
    Way {
        name: "mv, same file system",
        over: false,
        place: |at| run("mv", [&at.from, &at.to]),
    },
    Way {
        name: "mv, over an older one",
        over: true,
        place: |at| run("mv", [&at.from, &at.to]),
    },
    Way {
        name: "mv from another file system",
        over: false,
        place: |at| run("mv", [&at.from_afar, &at.to]),
    },
    Way {
        name: "tar x",
        over: false,
        place: untar,
    },
    Way {
        name: "tar x, over an older one",
        over: true,
        place: untar,
    },
    Way {
        name: "ln",
        over: false,
        place: |at| run("ln", [&at.from, &at.to]),
    },
    Way {
        name: "ln -s",
        over: false,
        place: |at| run("ln", [Path::new("-s"), &at.from, &at.to]),
    },
    Way {
        name: "ln -sf, over an older one",
        over: true,
        place: |at| run("ln", [Path::new("-sf"), &at.from, &at.to]),
    },
    Way {
        name: "O_TMPFILE and linkat",
        over: false,
        place: nameless,
    },
    Way {
        name: "scp",
        over: false,
        place: scp,
    },
    Way {
        name: "scp, slow",
        over: false,
        place: |at| slowly(&at.to, &at.bytes, ms(900)),
    },
    Way {
        name: "sftp put",
        over: false,
        place: sftp,
    },
    Way {
        name: "sftp, cut and resumed",
        over: false,
        place: |at| cut_and_appended(at, ms(1500)),
    },
    Way {
        name: "curl -o",
        over: false,
        place: |at| slowly(&at.to, &at.bytes, ms(200)),
    },
    Way {
        name: "rsync",
        over: false,
        place: rsync,
    },
    Way {
        name: "rsync, over an older one",
        over: true,
        place: rsync,
    },
    Way {
        name: "rsync --inplace",
        over: true,
        place: rsync_in_place,
    },
    Way {
        name: "rsync --partial, cut and run again",
        over: false,
        place: rsync_partial,
    },
    Way {
        name: "rsync --delay-updates",
        over: false,
        place: rsync_delayed,
    },
    Way {
        name: "k0sctl up to 0.31",
        over: false,
        place: |at| k0sctl_in_place(at, Duration::ZERO),
    },
    Way {
        name: "k0sctl up to 0.31, stalled for 15 s",
        over: false,
        place: |at| k0sctl_in_place(at, ms(15_000)),
    },
    Way {
        name: "k0sctl from 0.32",
        over: false,
        place: |at| k0sctl_by_name(at, Duration::ZERO),
    },
    Way {
        name: "k0sctl from 0.32, stalled for 15 s",
        over: false,
        place: |at| k0sctl_by_name(at, ms(15_000)),
    },
    Way {
        name: "k0s autopilot",
        over: false,
        place: autopilot,
    },
    Way {
        name: "rewritten in place",
        over: true,
        place: rewrite,
    },
    Way {
        name: "truncated, then written again",
        over: true,
        place: truncate,
    },
    Way {
        name: "written in pieces, appended each time",
        over: false,
        place: |at| in_pieces(at, ms(700)),
    },
    Way {
        name: "allocated first, then written slowly",
        over: false,
        place: allocated,
    },
    Way {
        name: "written through a second hard link",
        over: false,
        place: linked_while_written,
    },
    Way {
        name: "two writers, one after the other closes",
        over: false,
        place: two_writers,
    },
];

const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

fn run<const N: usize>(program: &str, arguments: [&(impl AsRef<OsStr> + ?Sized); N]) -> Placed {
    succeed(Command::new(program).args(arguments))
}

/// Runs a line of shell. The bundle is `$1` and its place is `$2`.
fn shell(line: &str, at: &Spot) -> Placed {
    succeed(
        Command::new("sh")
            .args(["-ec", line, "sh"])
            .args([&at.from, &at.to]),
    )
}

fn succeed(command: &mut Command) -> Placed {
    let status = command.stdin(Stdio::null()).status()?;
    match status.success() {
        true => Ok(()),
        false => Err(std::io::Error::other(format!("{command:?} ended with {status}"))),
    }
}

fn half(bytes: &[u8]) -> (&[u8], &[u8]) {
    bytes.split_at(bytes.len() / 2)
}

fn create(path: &Path) -> std::io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)
}

/// Writes three pieces within `time`.
fn slowly(path: &Path, bytes: &[u8], time: Duration) -> Placed {
    let mut file = create(path)?;
    for piece in bytes.chunks(bytes.len() / 3 + 1) {
        thread::sleep(time / 3);
        file.write_all(piece)?;
    }
    Ok(())
}

fn untar(at: &Spot) -> Placed {
    let archive = at.from.with_extension("outer");
    let (folder, name) = (at.from.parent(), at.from.file_name());
    let (folder, name) = (
        folder.expect("the path has a folder"),
        name.expect("the path has a name"),
    );
    let into = at.to.parent().expect("the path has a folder");
    let renamed = format!(
        "s,.*,{},",
        at.to.file_name().expect("the path has a name").display()
    );
    succeed(
        Command::new("tar")
            .arg("-cf")
            .arg(&archive)
            .arg("-C")
            .arg(folder)
            .arg("--transform")
            .arg(renamed)
            .arg(name),
    )?;
    succeed(Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(into))
}

fn nameless(at: &Spot) -> Placed {
    let folder = at.to.parent().expect("the path has a folder");
    let flags = OFlags::TMPFILE | OFlags::WRONLY;
    let mut file = File::from(rustix::fs::open(folder, flags, Mode::from_raw_mode(0o644))?);
    file.write_all(&at.bytes)?;
    let nameless = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
    Ok(rustix::fs::linkat(
        CWD,
        nameless,
        CWD,
        &at.to,
        AtFlags::SYMLINK_FOLLOW,
    )?)
}

fn scp(at: &Spot) -> Placed {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o644)
        .open(&at.to)?;
    for piece in at.bytes.chunks(16 << 10) {
        file.write_all(piece)?;
    }
    file.set_len(at.bytes.len() as u64)?;
    file.set_permissions(Permissions::from_mode(0o644))
}

fn sftp(at: &Spot) -> Placed {
    let file = create(&at.to)?;
    for (number, piece) in at.bytes.chunks(32 << 10).enumerate() {
        file.write_all_at(piece, (number * (32 << 10)) as u64)?;
    }
    file.set_permissions(Permissions::from_mode(0o640))?;
    file.set_modified(long_ago())
}

fn long_ago() -> std::time::SystemTime {
    std::time::UNIX_EPOCH + Duration::from_secs(1_600_000_000)
}

fn cut_and_appended(at: &Spot, pause: Duration) -> Placed {
    let (first, second) = half(&at.bytes);
    fs::write(&at.to, first)?;
    thread::sleep(pause);
    OpenOptions::new().append(true).open(&at.to)?.write_all(second)
}

fn rsync(at: &Spot) -> Placed {
    let temporary = rsync_temporary(at);
    write_as_rsync(&temporary, &at.bytes)?;
    fs::rename(temporary, &at.to)
}

fn rsync_temporary(at: &Spot) -> PathBuf {
    at.to.with_file_name(format!(
        ".{}.Xy1z2A",
        at.to.file_name().expect("the path has a name").display()
    ))
}

fn write_as_rsync(to: &Path, bytes: &[u8]) -> Placed {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(to)?;
    for piece in bytes.chunks(256 << 10) {
        file.write_all(piece)?;
    }
    drop(file);
    set_modified(to)?;
    fs::set_permissions(to, Permissions::from_mode(0o644))
}

/// Sets the time by path, like rsync and touch.
fn set_modified(path: &Path) -> Placed {
    let then = Timespec {
        tv_sec: 1_600_000_000,
        tv_nsec: 0,
    };
    let times = Timestamps {
        last_access: then,
        last_modification: then,
    };
    Ok(rustix::fs::utimensat(CWD, path, &times, AtFlags::empty())?)
}

fn rsync_in_place(at: &Spot) -> Placed {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&at.to)?;
    for (number, piece) in at.bytes.chunks(32 << 10).enumerate() {
        file.write_all_at(piece, (number * (32 << 10)) as u64)?;
    }
    file.set_len(at.bytes.len() as u64)?;
    drop(file);
    set_modified(&at.to)
}

/// An interrupted rsync gives its partial file the final name.
fn rsync_partial(at: &Spot) -> Placed {
    let temporary = rsync_temporary(at);
    write_as_rsync(&temporary, half(&at.bytes).0)?;
    fs::rename(&temporary, &at.to)?;
    thread::sleep(ms(1500));
    rsync(at)
}

fn rsync_delayed(at: &Spot) -> Placed {
    let temporary = rsync_temporary(at);
    write_as_rsync(&temporary, &at.bytes)?;
    let hold = at.to.with_file_name(format!(".~tmp~{}", at.mark));
    fs::create_dir(&hold)?;
    let held = hold.join(at.to.file_name().expect("the path has a name"));
    fs::rename(temporary, &held)?;
    thread::sleep(ms(300));
    fs::rename(held, &at.to)?;
    fs::remove_dir(hold)
}

/// Writes everything under the final name and closes it four times. At the end it sets the time
/// back.
fn k0sctl_in_place(at: &Spot, stall: Duration) -> Placed {
    shell("install -m 0644 /dev/null \"$2\"; truncate -s 0 \"$2\"", at)?;
    let mut file = OpenOptions::new().write(true).open(&at.to)?;
    write_with_stall(&mut file, &at.bytes, stall)?;
    drop(file);
    shell(
        "sha256sum \"$2\" > /dev/null; chown 0:0 \"$2\"; chmod 0644 \"$2\"; touch -m -d @1600000000 \"$2\"",
        at,
    )
}

/// Uses a hidden name, a checksum and the final name, and then sets times and owner.
fn k0sctl_by_name(at: &Spot, stall: Duration) -> Placed {
    let temporary = at.to.with_file_name(format!(".upload-{}", at.mark));
    let mut file = create(&temporary)?;
    file.set_len(0)?;
    write_with_stall(&mut file, &at.bytes, stall)?;
    drop(file);
    let line = "sha256sum \"$1\" > /dev/null; chmod 0644 \"$1\"; mv -f \"$1\" \"$2\"; chown 0:0 \"$2\"; \
                touch -m -d @1600000000 \"$2\"; touch -a -d @1600000000 \"$2\"; touch -m -d @1600000000 \"$2\"";
    succeed(
        Command::new("sh")
            .args(["-ec", line, "sh"])
            .args([&temporary, &at.to]),
    )
}

fn write_with_stall(file: &mut File, bytes: &[u8], stall: Duration) -> Placed {
    let (first, second) = half(bytes);
    file.write_all(first)?;
    thread::sleep(stall);
    file.write_all(second)
}

fn autopilot(at: &Spot) -> Placed {
    let mut download = Download::begin(&at.to, &at.mark)?;
    for piece in at.bytes.chunks(at.bytes.len() / 3 + 1) {
        thread::sleep(ms(70));
        download.receive(piece)?;
    }
    download.finish(None)
}

/// The old bundle has the same size, so that only the times differ.
fn rewrite(at: &Spot) -> Placed {
    let mut file = OpenOptions::new().write(true).open(&at.to)?;
    file.write_all(&at.bytes)?;
    file.set_len(at.bytes.len() as u64)
}

fn truncate(at: &Spot) -> Placed {
    shell("truncate -s 0 \"$2\"", at)?;
    thread::sleep(ms(800));
    fs::write(&at.to, &at.bytes)
}

fn in_pieces(at: &Spot, pause: Duration) -> Placed {
    File::create(&at.to)?;
    for piece in at.bytes.chunks(at.bytes.len() / 3 + 1) {
        thread::sleep(pause);
        OpenOptions::new().append(true).open(&at.to)?.write_all(piece)?;
    }
    Ok(())
}

fn allocated(at: &Spot) -> Placed {
    let mut file = create(&at.to)?;
    rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, at.bytes.len() as u64)?;
    thread::sleep(ms(700));
    file.seek(SeekFrom::Start(0))?;
    for piece in at.bytes.chunks(at.bytes.len() / 3 + 1) {
        file.write_all(piece)?;
        thread::sleep(ms(300));
    }
    Ok(())
}

fn linked_while_written(at: &Spot) -> Placed {
    let elsewhere = at.from.with_extension("growing");
    let mut file = create(&elsewhere)?;
    let (first, second) = half(&at.bytes);
    file.write_all(first)?;
    fs::hard_link(&elsewhere, &at.to)?;
    thread::sleep(ms(1000));
    file.write_all(second)
}

/// The first writer closes the file while the second still writes.
fn two_writers(at: &Spot) -> Placed {
    let mut first = create(&at.to)?;
    let second = OpenOptions::new().write(true).open(&at.to)?;
    first.write_all(&at.bytes)?;
    second.write_all_at(&[0xff; 512], 1024)?;
    drop(first);
    thread::sleep(ms(1000));
    second.write_all_at(&at.bytes[1024..1536], 1024)
}

/// The result of a way.
struct Outcome {
    name: &'static str,
    events: String,
    imports: usize,
    failures: usize,
    wait: Duration,
}

/// The images folder, a daemon on it, and the sources of the files.
struct Yard<'t> {
    target: &'t Target,
    node: Node,
    daemon: Daemon,
    afar: TempDir,
    events: Events,
}

impl<'t> Yard<'t> {
    fn on(target: &'t Target) -> Yard<'t> {
        let node = Node::on(target);
        let events = Events::of(&node.images());
        let shared_memory = Path::new("/dev/shm");
        let elsewhere = if shared_memory.is_dir() {
            shared_memory.to_owned()
        } else {
            std::env::temp_dir()
        };
        Yard {
            daemon: node.start(),
            node,
            target,
            afar: TempDir::new_in(elsewhere).expect("a folder"),
            events,
        }
    }

    /// Places a bundle in this way and waits until its image has a record.
    fn place(&self, number: usize, way: &Way) -> Outcome {
        let mark = format!("w{number:02}");
        let file = format!("{mark}.tar");
        let to = self.node.images().join(&file);
        let name = format!("registry.test/{mark}:1");
        if way.over {
            let older = self.node.path(&format!("{mark}-older.tar"));
            bundles::write(&older, [image(&name)]);
            fs::rename(older, &to).expect("the file can be moved");
            wait_until("the older one", || self.target.record(&name).is_some());
            wait_until("its end", || self.imports(&file) == 1);
        }
        let from = self.node.path(&format!("{mark}-from.tar"));
        let archive = bundles::write(&from, [image(&name)]);
        let from_afar = self.afar.path().join(&file);
        fs::copy(&from, &from_afar).expect("the file can be copied");
        let spot = Spot {
            bytes: archive.to_bytes(),
            from,
            from_afar,
            mark: mark.clone(),
            to,
        };
        let before = self.imports(&file);
        self.events.forget(&mark);
        (way.place)(&spot).unwrap_or_else(|error| panic!("{}: {error}", way.name));
        let placed = Instant::now();
        let is_there = || {
            let record = self.target.record(&name);
            record.is_some_and(|record| *record.target.digest() == archive.images[0].root)
        };
        wait_until(&format!("{}: the final content", way.name), is_there);
        let wait = placed.elapsed();
        wait_until(&format!("{}: the end of the import", way.name), || {
            self.imports(&file) > before
        });
        Outcome {
            name: way.name,
            events: self.events.of_mark(&mark),
            imports: self.imports(&file) - before,
            failures: self.lines(&file, "not imported"),
            wait,
        }
    }

    fn imports(&self, file: &str) -> usize {
        self.lines(file, "bundle imported")
    }

    fn lines(&self, file: &str, text: &str) -> usize {
        let of_file = format!("bundle={file}");
        let log = self.daemon.log();
        log.lines()
            .filter(|line| line.contains(text) && line.contains(&of_file))
            .count()
    }

    /// Waits until the daemon has finished: it has listed and checked everything once more.
    fn settle(&self) {
        let (bundle, name) = bundles::marker(self.node.path("marker.tar"));
        self.node.drop_in(&bundle);
        wait_until("a bundle after all others", || {
            self.target.record(&name).is_some()
        });
    }
}

/// The kernel's events about a folder: those that the daemon asks for, and writes.
struct Events {
    seen: Arc<Mutex<Vec<(String, &'static str)>>>,
}

impl Events {
    fn of(folder: &Path) -> Events {
        let inotify = inotify::init(CreateFlags::CLOEXEC).expect("the kernel has a watch for us");
        let wanted = WatchFlags::CREATE
            | WatchFlags::MODIFY
            | WatchFlags::ATTRIB
            | WatchFlags::CLOSE_WRITE
            | WatchFlags::MOVED_FROM
            | WatchFlags::MOVED_TO
            | WatchFlags::DELETE;
        inotify::add_watch(&inotify, folder, wanted).expect("the folder can be watched");
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&seen);
        // The thread ends with the folder, which is removed with the node.
        thread::spawn(move || {
            let mut buffer = [std::mem::MaybeUninit::uninit(); 16 << 10];
            let mut reader = inotify::Reader::new(inotify, &mut buffer);
            while let Ok(event) = reader.next() {
                if event.events().contains(ReadFlags::IGNORED) {
                    break;
                }
                let name = event.file_name().map(|name| name.to_string_lossy().into_owned());
                let mut log = log.lock().expect("no holder panics");
                log.push((name.unwrap_or_default(), letter(event.events())));
            }
        });
        Events { seen }
    }

    fn forget(&self, mark: &str) {
        self.seen
            .lock()
            .expect("no holder panics")
            .retain(|(name, _)| !name.contains(mark));
    }

    /// Returns the events of all names with that mark. Repeated events are merged, and other names
    /// than the final one are in brackets.
    fn of_mark(&self, mark: &str) -> String {
        let seen = self.seen.lock().expect("no holder panics");
        let mut told: Vec<String> = Vec::new();
        for (name, event) in seen.iter().filter(|(name, _)| name.contains(mark)) {
            let event = match *name == format!("{mark}.tar") {
                true => (*event).to_owned(),
                false => format!("({event})"),
            };
            if told.last() != Some(&event) {
                told.push(event);
            }
        }
        told.join(" ")
    }
}

fn letter(event: ReadFlags) -> &'static str {
    let letters = [
        (ReadFlags::CREATE, "C"),
        (ReadFlags::MODIFY, "M"),
        (ReadFlags::ATTRIB, "A"),
        (ReadFlags::CLOSE_WRITE, "W"),
        (ReadFlags::MOVED_FROM, "F"),
        (ReadFlags::MOVED_TO, "T"),
        (ReadFlags::DELETE, "D"),
    ];
    let found = letters.into_iter().find(|(flag, _)| event.contains(*flag));
    found.map_or("?", |(_, letter)| letter)
}

/// All ways run at once, so that none delays another. The stalled ones take 15 s.
fn every_way_of_placing_a_file_gives_one_import_of_its_final_content(target: &Target) {
    let yard = Yard::on(target);
    let outcomes: Vec<Outcome> = thread::scope(|scope| {
        let yard = &yard;
        let ways = WAYS.iter().enumerate();
        let placing: Vec<_> = ways
            .map(|(number, way)| scope.spawn(move || yard.place(number, way)))
            .collect();
        placing
            .into_iter()
            .map(|each| each.join().expect("the file was placed"))
            .collect()
    });
    yard.settle();
    for (number, outcome) in outcomes.iter().enumerate() {
        let file = format!("w{number:02}.tar");
        let older = usize::from(WAYS[number].over);
        assert_eq!(yard.imports(&file) - older, 1, "{}: imports", outcome.name);
        assert_eq!(
            yard.lines(&file, "not imported"),
            0,
            "{}: failed imports",
            outcome.name
        );
    }
    yard.daemon.finish(target);
}

/// Files that exist, or are being written, when the daemon starts.
fn what_is_unfinished_at_the_start_is_imported_once_when_it_is_finished(target: &Target) {
    let node = Node::on(target);
    let name = |what: &str| format!("registry.test/{what}:1");
    let build = |what: &str| bundles::layout([image(&name(what))]).build().to_bytes();
    let place = |what: &str| node.images().join(format!("{what}.tar"));
    let [whole, written, cut, empty] = ["whole", "written", "cut", "empty"].map(build);
    fs::write(place("whole"), &whole).unwrap();
    let mut writer = create(&place("written")).unwrap();
    writer.write_all(half(&written).0).unwrap();
    fs::write(place("cut"), half(&cut).0).unwrap();
    fs::write(place("empty"), "").unwrap();
    let daemon = node.start();
    wait_until("the whole one", || target.record(&name("whole")).is_some());
    let (bundle, marker) = bundles::marker(node.path("marker.tar"));
    node.drop_in(&bundle);
    wait_until("a later bundle", || target.record(&marker).is_some());
    for what in ["written", "cut", "empty"] {
        assert!(target.record(&name(what)).is_none(), "{what} is not finished");
    }
    writer.write_all(half(&written).1).unwrap();
    drop(writer);
    let append = |what: &str, bytes: &[u8]| {
        let file = OpenOptions::new().append(true).open(place(what));
        file.and_then(|mut file| file.write_all(bytes)).unwrap();
    };
    append("cut", half(&cut).1);
    append("empty", &empty);
    for what in ["written", "cut", "empty"] {
        wait_until(what, || target.record(&name(what)).is_some());
    }
    let log = daemon.finish(target);
    for what in ["whole", "written", "cut", "empty"] {
        let of_file = format!("bundle={what}.tar");
        let lines = |text: &str| {
            log.lines()
                .filter(|line| line.contains(text) && line.contains(&of_file))
                .count()
        };
        assert_eq!(
            (lines("bundle imported"), lines("not imported")),
            (1, 0),
            "{what}: {log}"
        );
    }
}

on_the_fake!(what_is_unfinished_at_the_start_is_imported_once_when_it_is_finished);
on_the_fake!(every_way_of_placing_a_file_gives_one_import_of_its_final_content);

/// `cargo xtask uploads`: runs the ways one after the other on a real containerd, and prints a
/// table.
#[test]
#[ignore = "prints a table for the documentation: `cargo xtask uploads` runs it"]
fn prints_the_table() {
    run_on(Place::Real(lab::Generation::V2_1), |target| {
        let yard = Yard::on(target);
        let mut rows = vec![
            "| method | events | imports | failed imports | from the last byte to the record |".to_owned(),
            "|---|---|---|---|---|".to_owned(),
        ];
        for (number, way) in WAYS.iter().enumerate() {
            let Outcome {
                name,
                events,
                imports,
                failures,
                wait,
            } = yard.place(number, way);
            rows.push(format!(
                "| {name} | {events} | {imports} | {failures} | {} ms |",
                wait.as_millis()
            ));
        }
        yard.daemon.finish(target);
        print_table(&rows);
    });
}

#[allow(clippy::print_stdout, reason = "this test prints the table")]
fn print_table(rows: &[String]) {
    println!("\n{}", rows.join("\n"));
}

#[test]
fn the_documentation_has_every_way() {
    let document = include_str!("../docs/watching.md");
    let first_cell = |line: &str| Some(line.strip_prefix("| ")?.split_once(" |")?.0.to_owned());
    let (_, table) = document.split_once("| method |").expect("there is the table");
    let told: Vec<_> = table.lines().filter_map(first_cell).collect();
    let there: Vec<_> = WAYS.iter().map(|way| way.name).collect();
    assert_eq!(told, there, "`cargo xtask uploads` prints the table anew");
}
