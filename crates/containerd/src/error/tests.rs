use super::*;

#[test]
fn an_answer_is_told_in_words_and_not_in_codes() {
    let said = |code, text: &str| {
        let failure = Failure::from(Status::new(code, text));
        let error = failure.into_error(Path::new("/x.sock"), None, "write blob a");
        basics::chain(&error)
    };
    let rows = [
        (
            Code::FailedPrecondition,
            "namespace is required: failed precondition",
            "cannot write blob a: containerd refused: a precondition is not met (namespace is required)",
        ),
        (
            Code::ResourceExhausted,
            "trying to send message larger than max (45 vs. 16): resource exhausted",
            "cannot write blob a: the message exceeds the size limit of containerd on /x.sock (raise max_send_message_size \
             in containerd's configuration): it reached one of its own limits (trying to send message larger than max (45 vs. \
             16))",
        ),
        (
            Code::Unavailable,
            "server is shutting down: unavailable",
            "cannot write blob a: containerd failed: it is starting, stopping or busy (server is shutting down)",
        ),
        (
            Code::DeadlineExceeded,
            "writing: context deadline exceeded",
            "cannot write blob a: containerd failed: it took too long (writing)",
        ),
        (
            Code::Unknown,
            "write /c/ingest/d/data: no space left on device",
            "cannot write blob a: no space left for containerd: write /c/ingest/d/data: no space left on device",
        ),
        (
            Code::Unknown,
            "rpc error: code = NotFound desc = failed to pull: r.test/a:1: not found: not found",
            "cannot write blob a: containerd failed: failed to pull: r.test/a:1: not found: not found",
        ),
        (
            Code::Internal,
            "",
            "cannot write blob a: containerd failed: it gives no reason",
        ),
        (
            Code::NotFound,
            "content sha256:a: not found",
            "cannot write blob a: containerd failed: it does not have this (content sha256:a)",
        ),
    ];
    for (code, text, expected) in rows {
        assert_eq!(said(code, text), expected, "{code:?} {text}");
    }
}

#[test]
fn bytes_that_containerd_does_not_take_are_told_with_both_digests() {
    let (wanted, found) = (basics::digest::sha256(b"a"), basics::digest::sha256(b"b"));
    let told = |text: String| Failure::from(Status::failed_precondition(text)).reason_of_bytes(&wanted);
    assert_eq!(
        told(format!(
            "unexpected commit digest {found}, expected {wanted}: failed precondition"
        )),
        format!("its bytes hash to {found}, not {wanted}")
    );
    assert_eq!(
        told("unexpected commit size 90, expected 10: failed precondition".to_owned()),
        format!("{wanted} has 90 bytes in containerd, which is not the expected size")
    );
    assert_eq!(
        told("odd: failed precondition".to_owned()),
        format!("containerd does not accept the bytes of {wanted}: odd")
    );
}

#[test]
fn a_refusal_tells_how_large_the_message_was() {
    let told = |code, text: &str| Failure::from(Status::new(code, text)).oversize();
    let sizes = Some(Oversize {
        size: 45_310_080,
        limit: 16_777_216,
    });
    let containerds = "grpc: trying to send message larger than max (45310080 vs. 16777216)";
    assert_eq!(told(Code::ResourceExhausted, containerds), sizes);
    let ours = "Error, decoded message length too large: found 45310080 bytes, the limit is: 16777216 bytes";
    assert_eq!(told(Code::OutOfRange, ours), sizes);
    for (code, text) in [
        (Code::Unknown, containerds),
        (Code::ResourceExhausted, "too many"),
        (Code::ResourceExhausted, "larger than max (7 vs. 0)"),
        (Code::ResourceExhausted, "larger than max (7 vs. 16777216)"),
        (Code::ResourceExhausted, "(99999999999999999999999 vs. 16777216)"),
    ] {
        assert_eq!(told(code, text), None, "{code:?} {text}");
    }
}

#[test]
fn bytes_that_have_gone_by_are_no_fault_of_the_bundle_and_no_reason_to_wait() {
    use io::ErrorKind::{InvalidData, NotSeekable, Other, UnexpectedEof};
    let digest = basics::digest::sha256(b"a");
    for (kind, recovery) in [
        (UnexpectedEof, Recovery::Content),
        (InvalidData, Recovery::Content),
        (NotSeekable, Recovery::Permanent),
        (Other, Recovery::Transient),
    ] {
        let error = Error::source(&digest, io::Error::from(kind));
        assert_eq!(error.recovery(), recovery, "{kind:?}");
    }
}
