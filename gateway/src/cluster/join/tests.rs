//! Who is let in, and who is told no and why.

use super::*;
use crate::ledger::memory::MemoryStore;
use std::sync::atomic::{AtomicU64, Ordering};
use storage_node::join::{hex, make_key, request_certificate};

const START_MS: u64 = 1_790_000_000_000;

struct Hands(AtomicU64);

impl Clock for Hands {
    fn now_ms(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

struct House {
    joining: Joining,
    clock: Arc<Hands>,
}

async fn house() -> House {
    let cluster = ClusterId(7);
    let certified = Authority::create(cluster, START_MS).expect("an authority");
    let authority = Authority::open(cluster, &certified).expect("the same");
    let gateway = authority.certify_gateway(START_MS).expect("a certificate");
    let credentials = Credentials::from_pem(&authority.certificate, &gateway.certificate, &gateway.key);
    let invitation = Invitation {
        cluster,
        authority,
        credentials: Arc::new(credentials.expect("credentials")),
        address: "127.0.0.1:9002".into(),
    };
    let ledger = Ledger::new(Arc::new(MemoryStore::default()));
    let lease = Lease::take_over(ledger.clone(), "test").await.expect("a lease");
    let clock = Arc::new(Hands(AtomicU64::new(START_MS)));
    let joining = Joining::new(invitation, ledger, Arc::new(lease), Arc::default(), clock.clone());
    House { joining, clock }
}

fn request(token: &Token, key: &str, name: &str) -> JoinRequest {
    JoinRequest {
        secret: hex(&token.secret),
        request: request_certificate(key, name).expect("a request"),
        name: name.into(),
        place: Announcement {
            address: "127.0.0.1:9100".into(),
            rack: "r1".into(),
            zone: String::new(),
        },
    }
}

async fn token(house: &House) -> Token {
    let made = house.joining.make_token(Duration::from_secs(60)).await;
    made.expect("a token").0
}

#[tokio::test]
async fn a_token_lets_one_node_in_and_says_no_to_the_next() {
    let house = house().await;
    let token = token(&house).await;
    let (first, second) = (make_key().unwrap(), make_key().unwrap());
    let (id, answer) = house
        .joining
        .join(&request(&token, &first, "a"))
        .await
        .expect("joins");
    let credentials = Credentials::from_pem(&answer.authority, &answer.certificate, &first);
    assert_eq!(
        credentials.expect("credentials").peer,
        Peer::node(ClusterId(7), id)
    );
    let refused = house
        .joining
        .join(&request(&token, &second, "b"))
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("used, by node a"), "{refused}");
    // The answer to the first may have been lost.
    let (again, _) = house
        .joining
        .join(&request(&token, &first, "a"))
        .await
        .expect("the same again");
    assert_eq!(again, id);
}

#[tokio::test]
async fn what_is_expired_unknown_or_taken_is_refused_in_words() {
    let house = house().await;
    let (first, second) = (make_key().unwrap(), make_key().unwrap());
    let mut unknown = token(&house).await;
    unknown.secret[0] ^= 1;
    let refused = house
        .joining
        .join(&request(&unknown, &first, "a"))
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("unknown"), "{refused}");
    let late = token(&house).await;
    house.clock.0.fetch_add(61_000, Ordering::Relaxed);
    let refused = house
        .joining
        .join(&request(&late, &first, "a"))
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("expired 1 s ago"), "{refused}");
    let good = token(&house).await;
    house
        .joining
        .join(&request(&good, &first, "a"))
        .await
        .expect("joins");
    let good = token(&house).await;
    let refused = house
        .joining
        .join(&request(&good, &second, "a"))
        .await
        .unwrap_err();
    assert!(
        refused.to_string().contains("already, with another key"),
        "{refused}"
    );
    let refused = house
        .joining
        .join(&request(&good, &first, "b"))
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("that of node a"), "{refused}");
    let mut nonsense = request(&good, &second, "b");
    nonsense.request = "nothing".into();
    let refused = house.joining.join(&nonsense).await.unwrap_err();
    assert!(matches!(refused, JoinError::Bad(_)), "{refused}");
    // None of this used the token up.
    house
        .joining
        .join(&request(&good, &second, "b"))
        .await
        .expect("joins");
}

#[tokio::test]
async fn a_node_says_where_it_is_and_nobody_says_it_for_it() {
    let house = house().await;
    let token = token(&house).await;
    let key = make_key().unwrap();
    let (id, _) = house
        .joining
        .join(&request(&token, &key, "a"))
        .await
        .expect("joins");
    let place = Announcement {
        address: "127.0.0.1:9200".into(),
        rack: "r2".into(),
        zone: "z".into(),
    };
    let cluster = ClusterId(7);
    for nobody in [
        None,
        Some(Peer::gateway(cluster)),
        Some(Peer::node(cluster, NodeId(1))),
    ] {
        let refused = house.joining.announce(nobody, &place).await.unwrap_err();
        assert!(matches!(refused, JoinError::Forbidden(_)), "{refused}");
    }
    let announced = house
        .joining
        .announce(Some(Peer::node(cluster, id)), &place)
        .await;
    assert_eq!(announced.expect("is known"), id);
    let rows = nodes::rows(&house.joining.ledger).await.expect("rows");
    assert_eq!(
        (rows[&id].row.address.as_str(), rows[&id].row.zone.as_str()),
        ("127.0.0.1:9200", "z")
    );
}

#[tokio::test]
async fn old_tokens_are_forgotten() {
    let house = house().await;
    token(&house).await;
    house
        .clock
        .0
        .fetch_add(60_000 + REMEMBERED_MS + 1, Ordering::Relaxed);
    token(&house).await;
    let tokens = house.joining.ledger.count(key::table(b't'), 10).await;
    assert_eq!(tokens.expect("a count"), 1);
    assert!(house.joining.make_token(Duration::ZERO).await.is_err());
    assert!(
        house
            .joining
            .make_token(TTL_MAX + Duration::from_secs(1))
            .await
            .is_err()
    );
}
