import numpy as np
import pytest

from minerua.errors import EvolutionError
from minerua.evolution import AddStatus, Bounds, Cycle, Result
from minerua.values import Failure

from .toys import advance, closeness, corners, cross, genome, jitter, scores, toy_cycle

KS = pytest.mark.parametrize("tasks", [2, 3, 4, 5])


def contents(cycle):
    return [archive.elites for archive in cycle.archives]


@KS
def test_every_seed_is_offered_to_every_archive(tasks):
    cycle = toy_cycle(tasks)
    assert len(cycle.archives) == tasks
    for archive in cycle.archives:
        assert 1 <= len(archive) <= tasks
        assert archive.best().means[archive.quality] == max(s.means[archive.quality] for _, s in corners(tasks))


@KS
def test_active_archive_of_child_t_is_t_mod_k(tasks):
    proposals = toy_cycle(tasks).ask(2 * tasks + 1)
    assert [p.task for p in proposals] == [t % tasks for t in range(1, 2 * tasks + 2)]
    assert [p.id for p in proposals] == list(range(tasks, 3 * tasks + 1))


@KS
def test_only_active_archives_give_parents_by_turns(tasks):
    last = tasks - 1
    assert {p.task for p in toy_cycle(tasks, active=[last]).ask(5)} == {last}
    assert [p.task for p in toy_cycle(tasks, active=[0, last]).ask(4)] == [last, 0, last, 0]


@pytest.mark.parametrize("active", [[], [3], [-1], [0, 9]])
def test_archives_that_do_not_exist_cannot_be_active(active):
    with pytest.raises(EvolutionError, match="active archives must be one or more of 0 to 2, found"):
        toy_cycle(3, active=active)


@KS
def test_every_child_is_offered_to_every_archive(tasks):
    cycle = toy_cycle(tasks)
    proposal = cycle.ask()[0]
    child = cycle.breed(proposal)
    statuses = cycle.tell(Result(proposal.id, child.digest, scores(*[2.0] * tasks)))
    assert all(status is not AddStatus.NOT_ADDED for status in statuses)
    assert all(archive.best().digest == child.digest for archive in cycle.archives)


@KS
def test_evolution_finds_children_better_on_average_than_any_seed(tasks):
    cycle = toy_cycle(tasks)
    before = max(np.mean(s.means) for _, s in corners(tasks))
    advance(cycle, tasks, 300)
    after = max(np.mean(elite.means) for archive in cycle.archives for elite in archive.elites)
    assert after > before + 0.05
    optimum = closeness(genome(*[(1 + 0.2 * (tasks - 1)) / tasks] * tasks), tasks).mean
    assert after > 0.9 * optimum


@KS
def test_same_seed_gives_same_archives_and_another_seed_gives_others(tasks):
    cycles = [toy_cycle(tasks, seed=seed) for seed in (7, 7, 8)]
    for cycle in cycles:
        advance(cycle, tasks, 60)
    assert contents(cycles[0]) == contents(cycles[1]) != contents(cycles[2])


def test_results_told_out_of_order_are_all_filed():
    cycle = toy_cycle(3)
    proposals = cycle.ask(4)
    for proposal in (proposals[2], proposals[0], proposals[3], proposals[1]):
        child = cycle.breed(proposal)
        cycle.tell(Result(proposal.id, child.digest, closeness(child, 3)))
    assert cycle.evaluations == 4
    assert cycle.pending == ()


def test_order_of_tell_does_not_change_what_children_are():
    one, two = toy_cycle(3), toy_cycle(3)
    first, second = one.ask(5), two.ask(5)
    assert first == second
    assert [one.breed(p).digest for p in first] == [two.breed(p).digest for p in reversed(second)][::-1]


def test_telling_twice_files_once_and_another_outcome_is_refused():
    cycle = toy_cycle(2)
    proposal = cycle.ask()[0]
    child = cycle.breed(proposal)
    result = Result(proposal.id, child.digest, closeness(child, 2))
    cycle.tell(result)
    before = contents(cycle)
    assert set(cycle.tell(result)) == {AddStatus.NOT_ADDED}
    assert contents(cycle) == before
    assert cycle.evaluations == 1
    with pytest.raises(EvolutionError, match=f"child {proposal.id} was told before with another outcome"):
        cycle.tell(Result(proposal.id, child.digest, Failure("late")))


def test_a_child_that_nobody_asked_for_is_refused_naming_those_that_were():
    cycle = toy_cycle(2)
    cycle.ask(2)
    with pytest.raises(EvolutionError, match="nobody asked for child 99; waiting for: 2, 3"):
        cycle.tell(Result(99, "x", scores(1, 1)))


def test_asking_for_no_child_is_refused():
    with pytest.raises(EvolutionError, match="at least one child, not 0"):
        toy_cycle(2).ask(0)


def test_scores_on_the_wrong_number_of_tasks_are_refused():
    cycle = toy_cycle(3)
    proposal = cycle.ask()[0]
    with pytest.raises(EvolutionError, match="2 tasks, the cycle has 3"):
        cycle.tell(Result(proposal.id, "x", scores(1, 1)))


def test_a_failed_child_counts_as_an_evaluation_and_enters_no_archive():
    cycle = toy_cycle(3)
    before = contents(cycle)
    proposal = cycle.ask()[0]
    statuses = cycle.tell(Result(proposal.id, cycle.breed(proposal).digest, Failure("NaN")))
    assert set(statuses) == {AddStatus.NOT_ADDED}
    assert contents(cycle) == before
    assert cycle.evaluations == 1


def test_failed_seeds_take_part_in_nothing_and_a_population_of_failures_is_refused():
    seeds = corners(2)
    bounds = Bounds.of_experts([s.means for _, s in seeds])
    options = {"crossover": cross, "mutate": jitter}
    cycle = Cycle([(seeds[0][0], Failure("broken")), seeds[1]], bounds, **options)
    assert {e.id for archive in cycle.archives for e in archive.elites} == {1}
    assert cycle.ask()[0].parents == (seeds[1][0].digest,) * 2
    with pytest.raises(EvolutionError, match="none could be scored"):
        Cycle([(seeds[0][0], Failure("broken"))], bounds, **options)


def test_a_child_is_a_function_of_its_parents_its_number_and_the_seed():
    cycle = toy_cycle(3)
    proposal = cycle.ask()[0]
    assert cycle.breed(proposal).digest == cycle.breed(proposal).digest


def replayed(results, tasks, children):
    """A cycle that was told everything and has bred nothing, as after a resume."""
    cycle = toy_cycle(tasks)
    for result in results[:children]:
        cycle.ask()
        cycle.tell(result)
    return cycle


def test_forgotten_ancestors_are_bred_again_when_they_are_needed():
    whole = toy_cycle(3)
    results = advance(whole, 3, 80)
    cycle = replayed(results, 3, 50)
    assert advance(cycle, 3, 30) == results[50:]
    assert contents(cycle) == contents(whole)


def test_genomes_of_the_dead_are_forgotten():
    cycle = toy_cycle(3)
    advance(cycle, 3, 200)
    alive = {elite.digest for archive in cycle.archives for elite in archive.elites}
    assert set(cycle._genomes) <= alive


def test_a_parent_that_left_every_archive_is_forgotten_when_its_last_child_is_told():
    cycle = toy_cycle(3)
    advance(cycle, 3, 300, batch=7)
    elites = {elite.digest for archive in cycle.archives for elite in archive.elites}
    assert cycle._genomes.keys() == elites - {seed.digest for seed, _ in corners(3)}
    assert cycle.alive == tuple(sorted(cycle._genomes))


def test_only_children_that_enter_an_archive_are_written_to_the_caller_s_mapping():
    class Shelf(dict):
        written = 0

        def __setitem__(self, name, genome):
            Shelf.written += 1
            super().__setitem__(name, genome)

    shelf, entered = Shelf(), 0
    cycle = toy_cycle(3, genomes=shelf, bins=3)
    for _ in range(200):
        proposal = cycle.ask()[0]
        child = cycle.breed(proposal)
        statuses = cycle.tell(Result(proposal.id, child.digest, closeness(child, 3)))
        entered += set(statuses) != {AddStatus.NOT_ADDED}
        assert shelf.keys() == set(cycle.alive)
    assert Shelf.written == entered < 150


def test_a_child_waiting_to_be_told_keeps_its_parents_alive():
    cycle = toy_cycle(2)
    advance(cycle, 2, 20)
    proposal = cycle.ask()[0]
    assert set(proposal.parents) - {seed.digest for seed, _ in corners(2)} <= set(cycle.alive)


def test_a_resumed_cycle_takes_genomes_that_are_still_there_instead_of_breeding_them():
    kept, bred = {}, []
    whole = toy_cycle(3, genomes=kept)
    results = advance(whole, 3, 60)

    def counted(parents, generator):
        bred.append(parents)
        return cross(parents, generator)

    again = toy_cycle(3, genomes=dict(kept), crossover=counted)
    for result in results:
        again.ask()
        again.tell(result)
    for digest in again.alive:
        assert again.genome(digest).digest == digest
    assert bred == []


def test_a_lineage_deeper_than_the_stack_can_be_bred_again():
    def step(parents, generator):
        return genome(*(parents[0].values + np.float32(0.001)))

    def deep():
        seeds = [(genome(0.0, 0.0), scores(0.0, 0.0))]
        return Cycle(seeds, Bounds((0, 0), (1, 1)), crossover=step, mutate=lambda g, r, t: g, bins=1)

    first, results = deep(), []
    for i in range(1500):
        proposal = first.ask()[0]
        child = first.breed(proposal)
        results.append(Result(proposal.id, child.digest, scores(i + 1.0, i + 1.0)))
        first.tell(results[-1])
    again = deep()
    for result in results:
        again.ask()
        again.tell(result)
    assert again.genome(results[-1].digest).values.tolist() == first.genome(results[-1].digest).values.tolist()
    assert len(again._genomes) <= 2


def test_a_child_bred_again_with_other_numbers_is_an_error_and_not_another_run():
    results = advance(toy_cycle(2), 2, 10)
    cycle = toy_cycle(2, mutate=lambda g, r, t: genome(*(g.values * 1.01)))
    for result in results:
        cycle.ask()
        cycle.tell(result)
    last = next(e for a in cycle.archives for e in a.elites if e.id >= 2)
    with pytest.raises(EvolutionError, match=r"child .* was .* when it was first bred"):
        cycle.genome(last.digest)


def test_a_genome_that_nobody_has_is_an_error():
    with pytest.raises(EvolutionError, match="no genome of this run is named nobody"):
        toy_cycle(2).genome("nobody")
