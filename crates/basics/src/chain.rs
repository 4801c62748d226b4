//! Errors with their causes.

use std::error::Error;

/// Returns an error and its causes in one line, separated by colons.
///
/// A cause that the line already ends with is left out: some errors print their cause themselves.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::fmt;

    use super::*;

    #[derive(Debug)]
    struct Layer(&'static str, Option<Box<Layer>>);

    impl fmt::Display for Layer {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
    }

    impl Error for Layer {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            self.1.as_deref().map(|cause| cause as &(dyn Error + 'static))
        }
    }

    #[test]
    fn each_cause_is_said_once() {
        let cause = Layer("disk full", None);
        let middle = Layer("cannot write: disk full", Some(Box::new(cause)));
        let error = Layer("a.tar", Some(Box::new(middle)));
        assert_eq!(chain(&error), "a.tar: cannot write: disk full");
    }
}
