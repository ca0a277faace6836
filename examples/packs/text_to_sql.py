"""Partial rewards for SQL as a verifier: `counterplay search ... --verifier text_to_sql:rewards` from this folder."""

from counterplay.core.nouns import Trajectory
from counterplay.verifiers.packs.sql import Database, SqlRewards, Weights

SHOP = """
create table customer(id integer, name text, country text);
create table invoice(id integer, customer_id integer, amount decimal(10, 2), paid date);
insert into customer values (1, 'Ada', 'UK'), (2, 'Max', 'CH'), (3, 'Mia', 'CH');
insert into invoice values (1, 1, 120, '2024-02-01'), (2, 2, 80.5, null), (3, 3, 19.5, '2024-03-05');
"""
KNOWN = {
    "How much is unpaid?": "select sum(amount) from invoice where paid is null",
    "Which countries have paid most, largest first?": "select country, sum(amount) from invoice join customer on customer.id = customer_id "
    "where paid is not null group by country order by sum(amount) desc",
}


def known(trajectory: Trajectory) -> str | None:
    """The right query for the question that was asked; None, so no opinion, for any other."""
    asked = [message.content_text for message in trajectory.prompt if message.role == "user"]
    return KNOWN.get(asked[-1]) if asked else None


rewards = SqlRewards(database=Database("duckdb", script=SHOP), reference=known, weights=Weights(execution=4))
