//! Files that are right, and files that are not.

use super::*;

fn told(text: &str) -> String {
    let parsed = parse(Path::new("etc/cairn.toml"), text, Wanted::default());
    parsed.expect_err("mistakes").to_string()
}

#[test]
fn a_file_says_what_it_says() {
    let text = r#"
[gateway]
data = "gateway"
listen = "0.0.0.0:9000"
memory = "1GiB"

[node]
name = "node-1"
data = "/var/lib/cairn"
listen = "10.0.0.2:9100"
rack = "r1"
disks = ["/dev/sdb", "disk-1"]
verify_every = "never"
"#;
    let config = parse(Path::new("etc/cairn.toml"), text, Wanted::default()).expect("no mistakes");
    let gateway = config.gateway.expect("a gateway");
    assert_eq!(gateway.data, Some("etc/gateway".into()));
    assert_eq!(gateway.memory, Some(1 << 30));
    let node = config.node.expect("a node");
    assert_eq!(node.disks, Some(vec!["/dev/sdb".into(), "etc/disk-1".into()]));
    assert_eq!(node.verify_every, Some(None));
    assert_eq!(node.rack.as_deref(), Some("r1"));
}

#[test]
fn what_is_missing_may_be_given_elsewhere() {
    let text = "[node]\nname = \"a\"\nlisten = \"0.0.0.0:1\"\n";
    assert_eq!(told(text).lines().count(), 2);
    let wanted = Wanted {
        section: Some("node"),
        given: &["data", "address"],
    };
    assert!(parse(Path::new("x"), text, wanted).is_ok());
    let wanted = Wanted {
        section: Some("gateway"),
        given: &[],
    };
    let told = parse(Path::new("x"), "", wanted).expect_err("nothing is there");
    assert_eq!(told.to_string(), "x: there is no section [gateway]");
}

#[test]
fn text_that_is_no_toml_is_said_to_be_none() {
    let told = told("[node\nname = \"a\nx = = 3\n");
    assert!(told.starts_with("etc/cairn.toml:1:6: "), "{told}");
    assert!(told.lines().count() > 1, "{told}");
}
