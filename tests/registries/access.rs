//! Access to registries: TLS, credentials, mirrors, proxies. Also the forms of references and of
//! the output.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use bundle::fixtures::{Image, Manifest, digest_of};
use tempfile::TempDir;

use super::{answer, bundle, bundler, files_in};
use crate::support::bundles::{native, text};
use crate::support::middleman::{Act, Middleman};
use crate::support::node::Answer;
use crate::support::registry::{Certificate, Manner, PASSWORD, Registry, USER};
use crate::support::unique;

/// Returns a registry with one image, `some/image:1`.
fn registry() -> Option<Registry> {
    let registry = Registry::start()?;
    registry.push("some/image", "1", image());
    Some(registry)
}

fn image() -> Image {
    Image::unnamed().manifest(Manifest::new(native()).layer(unique()))
}

/// Bundles `some/image:1` of a registry with TLS into a folder.
fn by_tls(host: &str, folder: &Path, arguments: &[&str]) -> Answer {
    let (name, file) = (format!("{host}/some/image:1"), text(&folder.join("bundle.tar")));
    answer(bundler([&name, "-o", &file]).args(arguments))
}

#[test]
fn certificates_are_checked_unless_that_is_waived() {
    let Some(plain) = registry() else { return };
    let (certificate, folder) = (Certificate::new(), TempDir::new().unwrap());
    let registry = plain.also(&Manner {
        tls: Some(&certificate),
        ..Manner::default()
    });
    let began = Instant::now();
    let answer = by_tls(&registry.host(), folder.path(), &[]).exits(1);
    assert!(
        answer.stderr.contains("certificate") && answer.stderr.contains(&registry.host()),
        "{answer:?}"
    );
    assert!(answer.stderr.contains("--ca-file"), "{answer:?}");
    assert!(began.elapsed().as_secs() < 5, "the command does not retry");
    assert!(files_in(folder.path()).is_empty());
    by_tls(
        &registry.host(),
        folder.path(),
        &["--ca-file", &certificate.authority()],
    )
    .exits(0);
    by_tls(
        &registry.host(),
        folder.path(),
        &["--insecure-registries", "skip-tls-verify"],
    )
    .exits(0);
    // A certificate of another authority is not accepted.
    let other = Certificate::new();
    by_tls(
        &registry.host(),
        folder.path(),
        &["--ca-file", &other.authority()],
    )
    .exits(1);

    let no_tls = ["--insecure-registries", "plain-http", "--retries", "0"];
    by_tls(&registry.host(), folder.path(), &no_tls).exits(1);
    let answer = by_tls(&plain.host(), folder.path(), &["--retries", "0"]).exits(1);
    assert!(answer.stderr.contains("plain-http"), "{answer:?}");
    let nothing = folder.path().join("nothing.pem");
    for content in [None, Some("nothing")] {
        content
            .into_iter()
            .for_each(|content| fs::write(&nothing, content).unwrap());
        let answer = by_tls(&registry.host(), folder.path(), &["--ca-file", &text(&nothing)]).exits(1);
        assert!(answer.stderr.contains("nothing.pem"), "{answer:?}");
    }
}

/// On a machine without certificates, those of `--ca-file` count, and plain HTTP needs none.
#[test]
fn a_machine_without_certificates_of_authorities_fetches_all_the_same() {
    let Some(plain) = registry() else { return };
    let (certificate, folder) = (Certificate::new(), TempDir::new().unwrap());
    let secured = plain.also(&Manner {
        tls: Some(&certificate),
        ..Manner::default()
    });
    let file = text(&folder.path().join("bundle.tar"));
    let run = |registry: &Registry, flags: &[&str]| {
        let name = format!("{}/some/image:1", registry.host());
        let mut command = bundler([&name, "-o", &file]);
        let nowhere = ["SSL_CERT_FILE", "SSL_CERT_DIR"].map(|name| (name, "/nonexistent"));
        answer(command.args(flags).envs(nowhere))
    };
    run(&plain, &["--insecure-registries", "plain-http"]).exits(0);
    run(&secured, &["--insecure-registries", "skip-tls-verify"]).exits(0);
    run(&secured, &["--ca-file", &certificate.authority()]).exits(0);
    let answer = run(&secured, &[]).exits(1);
    assert!(answer.stderr.contains("--ca-file"), "{answer:?}");
}

fn auth_file(folder: &Path, text: &serde_json::Value) -> String {
    let path = folder.join(format!("{}.json", unique()));
    fs::write(&path, text.to_string()).unwrap();
    crate::support::bundles::text(&path)
}

/// Returns `user:password` in base64, by the program that every machine has.
fn base64(text: &str) -> String {
    let script = format!("printf %s '{text}' | base64 -w 0");
    let output = Command::new("sh").args(["-c", &script]).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// Writes a credential helper that gives this answer for every server, and records its requests.
fn helper(folder: &Path, name: &str, user: &str, secret: &str) {
    let path = folder.join(format!("docker-credential-{name}"));
    let asked = folder.join("asked");
    let script = format!(
        "#!/bin/sh\necho \"$1 $(cat)\" >> {}\necho '{{\"ServerURL\":\"x\",\"Username\":\"{user}\",\"Secret\":\"{secret}\"}}'\n",
        asked.display()
    );
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn a_registry_that_wants_a_user_gets_the_one_of_the_file() {
    let Some(public) = registry() else { return };
    let (certificate, folder) = (Certificate::new(), TempDir::new().unwrap());
    let registry = public.also(&Manner {
        tls: Some(&certificate),
        private: true,
    });
    let (host, path) = (registry.host(), folder.path());
    let authority = certificate.authority();
    let with = |file: &str| {
        by_tls(
            &host,
            path,
            &["--ca-file", &authority, "--registries-config", file],
        )
    };
    let answer = by_tls(&host, path, &["--ca-file", &authority]).exits(1);
    assert!(
        answer.stderr.contains("refuses access") && answer.stderr.contains("--registries-config"),
        "{answer:?}"
    );

    let pair = |password: &str| serde_json::json!({ "auth": base64(&format!("{USER}:{password}")) });
    let right = auth_file(path, &serde_json::json!({ "auths": { &host: pair(PASSWORD) } }));
    let wrong = auth_file(path, &serde_json::json!({ "auths": { &host: pair("guess") } }));
    let others = auth_file(
        path,
        &serde_json::json!({ "auths": { "other.test": pair(PASSWORD) } }),
    );
    with(&right).exits(0);
    let answer = with(&wrong).exits(1);
    assert!(
        answer.stderr.contains("not accepted") && !answer.stderr.contains("guess"),
        "{answer:?}"
    );
    with(&others).exits(1);
    // Of several files, the first that knows the registry counts.
    let flag = "--registries-config";
    let both = ["--ca-file", &authority, flag, &others, flag, &right];
    by_tls(&host, path, &both).exits(0);
    // A flag takes one file, so references may follow it.
    let (name, file) = (format!("{host}/some/image:1"), text(&path.join("bundle.tar")));
    let references_last = ["--ca-file", &authority, "-o", &file, flag, &right, &name];
    self::answer(&mut bundler(references_last)).exits(0);

    let name = format!("{host}/some/image:1");
    let file = text(&path.join("bundle.tar"));
    let default = || bundler([&name, "-o", &file, "--ca-file", &authority]);
    self::answer(default().env("REGISTRY_AUTH_FILE", &right)).exits(0);
    fs::create_dir(path.join("docker")).unwrap();
    fs::copy(&right, path.join("docker/config.json")).unwrap();
    self::answer(default().env("DOCKER_CONFIG", path.join("docker"))).exits(0);

    helper(path, "robots", USER, PASSWORD);
    helper(path, "strangers", USER, "guess");
    let search = format!("{}:{}", path.display(), std::env::var("PATH").unwrap());
    let rows = [
        (serde_json::json!({ "credHelpers": { &host: "robots" } }), 0),
        (serde_json::json!({ "credsStore": "robots" }), 0),
        (
            serde_json::json!({ "credsStore": "robots", "credHelpers": { &host: "strangers" } }),
            1,
        ),
        (serde_json::json!({ "credsStore": "absent" }), 1),
    ];
    for (document, code) in rows {
        let config = auth_file(path, &document);
        let mut command = default();
        command
            .args(["--registries-config", &config])
            .env("PATH", &search);
        let answer = self::answer(&mut command).exits(code);
        if document["credsStore"] == "absent" {
            assert!(answer.stderr.contains("docker-credential-absent"), "{answer:?}");
        }
    }
    let asked = fs::read_to_string(path.join("asked")).unwrap();
    assert_eq!(asked.lines().next(), Some(format!("get {host}").as_str()));
}

/// Returns a middleman that plays a token service in front of the registry.
fn token_service(
    registry: &Registry,
    accepts: impl Fn(&crate::support::middleman::Request) -> bool + Send + Sync + 'static,
) -> Middleman {
    Middleman::before(registry.port(), move |request, _| {
        if request.target.starts_with("/token") {
            return if accepts(request) {
                Act::Answer(
                    200,
                    String::new(),
                    r#"{"access_token":"opens","expires_in":60}"#.to_owned(),
                )
            } else {
                Act::Answer(401, String::new(), String::new())
            };
        }
        if request.header("authorization") == Some("Bearer opens") {
            return Act::Pass;
        }
        let host = request.header("host").unwrap();
        let challenge =
            format!("Www-Authenticate: Bearer realm=\"http://{host}/token\",service=\"a registry\"\r\n");
        Act::Answer(401, challenge, String::new())
    })
}

#[test]
fn tokens_are_fetched_as_the_challenge_says() {
    let Some(registry) = registry() else { return };
    let folder = TempDir::new().unwrap();
    let (path, file) = (folder.path(), text(&folder.path().join("bundle.tar")));
    let run = |middleman: &Middleman, document: &serde_json::Value| {
        let config = auth_file(path, document);
        let name = format!("{}/some/image:1", middleman.host());
        let mut command = bundler([&name, "-o", &file, "--insecure-registries", "plain-http"]);
        command.args(["--registries-config", &config]);
        let search = format!("{}:{}", path.display(), std::env::var("PATH").unwrap());
        self::answer(command.env("PATH", search))
    };
    let anybody = token_service(&registry, |request| request.method == "GET");
    run(&anybody, &serde_json::json!({})).exits(0);
    let asked: Vec<_> = anybody
        .seen()
        .into_iter()
        .filter(|seen| seen.target.starts_with("/token"))
        .collect();
    assert_eq!(asked.len(), 1, "a token serves for all requests");
    assert_eq!(
        asked[0].target,
        "/token?service=a+registry&scope=repository%3Asome%2Fimage%3Apull"
    );

    let expected = format!("Basic {}", base64(&format!("{USER}:{PASSWORD}")));
    let users = token_service(&registry, move |request| {
        request.header("authorization") == Some(&expected)
    });
    let pair = serde_json::json!({ "username": USER, "password": PASSWORD });
    run(&users, &serde_json::json!({ "auths": { users.host(): pair } })).exits(0);
    let answer = run(&users, &serde_json::json!({})).exits(1);
    assert!(
        answer.stderr.contains("gives no token without credentials"),
        "{answer:?}"
    );

    let refreshing = || {
        token_service(&registry, |request| {
            let has = |pair: &str| request.body.split('&').any(|given| given == pair);
            request.method == "POST" && has("grant_type=refresh_token") && has("refresh_token=to%26ken")
        })
    };
    let by_entry = refreshing();
    let entry = serde_json::json!({ "identitytoken": "to&ken" });
    run(
        &by_entry,
        &serde_json::json!({ "auths": { by_entry.host(): entry } }),
    )
    .exits(0);
    helper(path, "identity", "<token>", "to&ken");
    run(&refreshing(), &serde_json::json!({ "credsStore": "identity" })).exits(0);
}

#[test]
fn mirrors_are_asked_first_and_rewritten_names_stay_what_they_are() {
    let Some(registry) = registry() else { return };
    let Some(mirror) = Registry::start() else { return };
    let folder = TempDir::new().unwrap();
    let file = text(&folder.path().join("bundle.tar"));
    let asked = Middleman::before(mirror.port(), |_, _| Act::Pass);
    let name = "registry.test/some/image:1";
    let run = |arguments: &[&str]| {
        let report = bundle([name, "-o", &file, "-o", "json"].iter().chain(arguments));
        report.exits(0).json()["images"][0].clone()
    };
    let rewrite = format!("registry.test={}", registry.host());
    let mirrored = format!("registry.test={}/copies", asked.host());
    let from_origin = run(&["--rewrite", &rewrite]);
    assert_eq!(from_origin["names"], serde_json::json!([name]));
    // A mirror without the image and a mirror that does not answer each cost a request.
    let origin = format!("{}={}/copies", registry.host(), asked.host());
    let nobody = format!("{}=127.0.0.1:1/copies", registry.host());
    let both = [
        "--rewrite",
        &rewrite,
        "--mirror",
        &nobody,
        "--mirror",
        &origin,
        "--retries",
        "0",
    ];
    assert_eq!(run(&both), from_origin);
    assert!(!asked.seen().is_empty());
    // The client accepts another image from a mirror under the tag, because the operator trusts the
    // mirror.
    let (_, digest) = mirror.push("copies/some/image", "1", image());
    let from_mirror = run(&["--mirror", &mirrored]);
    assert_eq!(from_mirror["digest"], digest.to_string());
    assert_eq!(from_mirror["names"], serde_json::json!([name]));
}

#[test]
fn tag_and_digest_must_agree_and_what_is_absent_is_named() {
    let Some(registry) = registry() else { return };
    let folder = TempDir::new().unwrap();
    let file = text(&folder.path().join("bundle.tar"));
    let (name, digest) = (
        format!("{}/some/image", registry.host()),
        registry.digest("some/image", "1"),
    );
    let (_, other) = registry.push("some/image", "2", image());
    let pinned = format!("{name}:1@{digest}");
    let report = bundle([&pinned, "-o", &file, "-o", "json"]).exits(0).json();
    assert_eq!(
        report["images"][0]["names"],
        serde_json::json!([format!("{name}:1"), format!("{name}@{digest}"), pinned])
    );
    bundle([&format!("{name}@{digest}"), "-o", &file]).exits(0);
    fs::remove_file(&file).unwrap();
    fs::remove_file(format!("{file}.digest")).unwrap();

    let unknown = digest_of(b"nothing");
    let rows = [
        (
            format!("{name}:1@{other}"),
            format!("the tag is {digest} in the registry, not {other}"),
        ),
        (
            format!("{name}:3"),
            format!("{name}:3 is not in {}", registry.host()),
        ),
        (format!("{name}@{unknown}"), format!("{name}@{unknown} is not in")),
        (
            format!("{}/no/such:1", registry.host()),
            "no/such:1 is not in".to_owned(),
        ),
    ];
    for (reference, expected) in &rows {
        let answer = bundle([reference, "-o", &file]).exits(1);
        assert!(answer.stderr.contains(expected), "{expected}: {answer:?}");
    }
    // All mistakes are reported at once, before a layer is transferred.
    let all = rows
        .iter()
        .map(|(reference, _)| reference.as_str())
        .chain([pinned.as_str(), "-o", &file]);
    let answer = bundle(all).exits(1);
    assert!(
        rows.iter().all(|(_, expected)| answer.stderr.contains(expected)),
        "{answer:?}"
    );
    assert!(files_in(folder.path()).is_empty());
}

#[test]
fn proxies_of_the_environment_are_used_but_for_the_exceptions() {
    let Some(plain) = registry() else { return };
    let (certificate, folder) = (Certificate::new(), TempDir::new().unwrap());
    let secured = plain.also(&Manner {
        tls: Some(&certificate),
        ..Manner::default()
    });
    let file = text(&folder.path().join("bundle.tar"));
    let run = |registry: &Registry, flags: &[&str], variables: &[(&str, &str)]| {
        let name = format!("{}/some/image:1", registry.host());
        let mut command = bundler([&name, "-o", &file, "--retries", "0"]);
        answer(command.args(flags).envs(variables.iter().copied()))
    };
    let by_plain_http = ["--insecure-registries", "plain-http"];
    let proxy = Middleman::before(plain.port(), |_, _| Act::Pass);
    let url = format!("http://{}", proxy.host());
    run(&plain, &by_plain_http, &[("HTTP_PROXY", &url)]).exits(0);
    let seen = proxy.seen();
    assert!(
        seen.iter()
            .all(|seen| seen.target.starts_with(&format!("http://{}/v2/", plain.host()))),
        "{seen:?}"
    );
    run(
        &plain,
        &by_plain_http,
        &[("http_proxy", &url), ("no_proxy", "127.0.0.0/8")],
    )
    .exits(0);
    assert_eq!(proxy.seen().len(), seen.len());

    let tunnel = Middleman::before(secured.port(), |_, _| Act::Pass);
    let url = format!("http://{}", tunnel.host());
    let flags = ["--ca-file", &certificate.authority()];
    run(&secured, &flags, &[("HTTPS_PROXY", &url)]).exits(0);
    assert!(
        tunnel
            .seen()
            .iter()
            .all(|seen| seen.method == "CONNECT" && seen.target == secured.host())
    );
    assert!(!tunnel.seen().is_empty());
    run(&secured, &flags, &[("HTTPS_PROXY", "http://127.0.0.1:1")]).exits(1);
}

#[test]
fn references_come_from_standard_input_and_bundles_go_to_standard_output() {
    let Some(registry) = registry() else { return };
    let folder = TempDir::new().unwrap();
    let (list, file) = (folder.path().join("list"), folder.path().join("bundle.tar"));
    registry.push("some/other", "2", image());
    let host = registry.host();
    fs::write(
        &list,
        format!(
            "\u{feff}# two images\r\n\r\n  {host}/some/image:1 \r\n{host}/some/other:2\n{host}/some/image:1\n"
        ),
    )
    .unwrap();
    let plain_http = ["--insecure-registries", "plain-http"];
    let from_list = |output: &str| {
        let mut command = bundler(["-o", output]);
        command.args(plain_http).stdin(fs::File::open(&list).unwrap());
        command
    };
    let report = answer(from_list(&text(&file)).args(["-o", "json"]))
        .exits(0)
        .json();
    assert_eq!(report["images"].as_array().unwrap().len(), 2, "{report:#}");
    let output = from_list("-").output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(
        output.stdout == fs::read(&file).unwrap(),
        "nothing but the bundle"
    );
    assert!(String::from_utf8(output.stderr).unwrap().contains("2 images"));

    let nothing = answer(bundler(["-o", &text(&file)]).args(plain_http)).exits(2);
    assert!(nothing.stderr.contains("no image is named"), "{nothing:?}");
    // Any white space separates references.
    fs::write(
        &list,
        format!("{host}/some/image:1\t{host}/some/other:2 # a comment {host}/none:1"),
    )
    .unwrap();
    let words = answer(from_list(&text(&file)).args(["-o", "json"]))
        .exits(0)
        .json();
    assert_eq!(words["images"], report["images"]);
    fs::write(&list, "a:?\nx.test/UPPER:1\n").unwrap();
    let mistakes = answer(&mut from_list(&text(&file))).exits(2);
    assert!(
        mistakes.stderr.contains("a:?") && mistakes.stderr.contains("x.test/UPPER"),
        "{mistakes:?}"
    );
}

/// script(1) gives a program a terminal.
#[test]
fn a_terminal_gets_no_bundle() {
    let Some(registry) = registry() else { return };
    let name = format!("{}/some/image:1", registry.host());
    let command = bundler([&name, "-o", "-", "--insecure-registries", "plain-http"]);
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let line = words
        .map(|word| word.to_str().unwrap())
        .collect::<Vec<_>>()
        .join(" ");
    let mut script = Command::new("script");
    script.args(["--quiet", "--return", "--command", &line, "/dev/null"]);
    // script must not pass on variables that the program should not see.
    for (variable, _) in command.get_envs().filter(|(_, value)| value.is_none()) {
        script.env_remove(variable);
    }
    let answer = Answer::from(script.stdin(Stdio::null()).output().unwrap()).exits(2);
    assert!(
        answer.stdout.contains("refusing to write a bundle to a terminal"),
        "{answer:?}"
    );
    let no_output = bundler([&name])
        .args(["--insecure-registries", "plain-http"])
        .output()
        .unwrap();
    assert_eq!(no_output.status.code(), Some(0), "a pipe is no terminal");
    assert!(no_output.stdout.starts_with(b"oci-layout"));
    let both = bundle([&name, "-o", "-", "-o", "json"]).exits(2);
    assert!(both.said().contains("cannot both go"), "{both:?}");
}

/// The document as `docs/json.md` promises it to scripts.
#[test]
fn the_report_is_one_document_with_stable_keys() {
    let Some(registry) = registry() else { return };
    let folder = TempDir::new().unwrap();
    let (name, file) = (
        format!("{}/some/image:1", registry.host()),
        text(&folder.path().join("bundle.tar")),
    );
    let report = bundle([&name, "-o", &file, "-o", "json"]).exits(0).json();
    let inspected = answer(crate::support::node::program().args(["inspect", "-o", "json", &file]));
    let inspected = inspected.exits(0).json();
    let image = &inspected["images"][0];
    let bytes = &image["platforms"][0]["size"];
    assert!(report["duration_ms"].is_u64(), "{report:#}");
    let expected = serde_json::json!({
        "path": file,
        "bytes": inspected["size"],
        "archive_bytes": inspected["size"],
        "digest": inspected["digest"],
        "compression": "none",
        "base": null,
        "release": null,
        "images": [{
            "name": name,
            "names": [name],
            "digest": image["digest"],
            "media_type": "application/vnd.oci.image.manifest.v1+json",
            "platforms": [native()],
            "missing_platforms": [],
            "no_image": null,
            "bytes": bytes,
        }],
        "blobs": {
            "written": 3,
            "written_bytes": bytes,
            "fetched_bytes": report["blobs"]["fetched_bytes"],
            "cached_bytes": 0,
            "left_out": 0,
            "left_out_bytes": 0,
        },
        "duration_ms": report["duration_ms"],
    });
    assert_eq!(report, expected);
    let failed = bundle([&name.replace(":1", ":9"), "-o", &file, "-o", "json"]).exits(1);
    let failed = failed.json();
    assert!(
        failed["error"].as_str().unwrap().contains("some/image:9"),
        "{failed:#}"
    );
    assert_eq!(failed.as_object().unwrap().len(), 1);
}
