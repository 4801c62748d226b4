//! The configuration and `airgapd config`: mistakes, the source of each value, and its effect on
//! this node.

use crate::support::bundles::text;
use crate::support::{Node, Target, on_the_fake};

fn mistakes_in_the_configuration_are_all_said_at_once_and_end_with_2(target: &Target) {
    let node = Node::on(target);
    node.configure_also("resync: often\nonConflict: perhaps\nimageDir: /tmp");
    for command in [vec!["run"], vec!["config", "--check"], vec!["import", "x.tar"]] {
        let answer = node.airgapd(&command).exits(2);
        for word in ["resync", "onConflict", "imageDir"] {
            assert!(
                answer.stderr.contains(word),
                "{command:?} says {word}: {answer:?}"
            );
        }
    }
}

fn the_configuration_says_where_each_value_comes_from(target: &Target) {
    let node = Node::on(target);
    let mut command = node.command(["config", "--namespace", "from-a-flag"]);
    let output = command.env("AIRGAPD_RESYNC", "7m").output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}");
    let line = |text: &str| {
        said.lines()
            .find(|line| line.contains(text))
            .unwrap_or_else(|| panic!("{text}: {said}"))
    };
    assert!(line("from-a-flag").contains("# flag"), "{said}");
    assert!(line("7m").contains("# environment"), "{said}");
    assert!(line(&text(&node.images())).contains("# file"), "{said}");
}

fn config_says_what_the_settings_come_to_on_this_node(target: &Target) {
    let node = Node::on(target);
    let said = node.airgapd(["config"]).exits(0).stdout;
    for wanted in [
        format!("# bundles from {}", node.images().display()),
        format!("# images to the containerd on {}", target.socket().display()),
    ] {
        assert!(said.contains(&wanted), "{wanted}\n{said}");
    }
}

on_the_fake! {
    mistakes_in_the_configuration_are_all_said_at_once_and_end_with_2,
    the_configuration_says_where_each_value_comes_from,
    config_says_what_the_settings_come_to_on_this_node,
}
