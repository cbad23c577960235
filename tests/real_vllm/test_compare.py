"""Proves that the comparison forgives what differs between runs and nothing else. Run: python3 test_compare.py"""
import unittest

from compare import Answer, BadStream, differences, summary


def stream(*data):
    return Answer(200, "text/event-stream", "".join(f"data: {line}\n\n" for line in data).encode())


def body(text, status=200):
    return Answer(status, "application/json", text.encode())


def chunk(text, extra="", name="a"):
    return '{"id":"%s","choices":[{"index":0,"text":"%s"%s}]}' % (name, text, extra)


class Compare(unittest.TestCase):
    def check(self, one, other, same, random=False):
        found = differences(summary(one, random), summary(other, random))
        self.assertEqual(not found, same, found)

    def test_ids_and_times_are_forgiven(self):
        self.check(body('{"id":"a","created":1,"model":"m"}'), body('{"id":"b","created":2,"model":"m"}'), True)

    def test_values_members_types_and_status_are_not(self):
        one = body('{"id":"a","model":"m","n":1}')
        for other in ('{"id":"a","model":"x","n":1}', '{"id":"a","model":"m"}', '{"id":1,"model":"m","n":1}',
                      '{"id":"a","model":"m","n":1.5}', '{"id":"a","model":"m","n":1,"more":null}', "no json"):
            self.check(one, body(other), False)
        self.check(one, body('{"id":"a","model":"m","n":1}', 201), False)
        self.check(one, Answer(200, "text/plain", one.body), False)

    def test_a_stream_may_be_cut_differently(self):
        one = stream(chunk("a"), chunk("b"), chunk("c", ',"finish_reason":"length"'), "[DONE]")
        self.check(one, stream(chunk("a", name="z"), chunk("bc", ',"finish_reason":"length"'), "[DONE]"), True)

    def test_a_stream_may_lose_nothing(self):
        whole = [chunk("a"), chunk("b", ',"finish_reason":"length"'), "[DONE]"]
        for cut in range(3):
            self.check(stream(*whole), stream(*whole[:cut], *whole[cut + 1:]), False)
        self.check(stream(*whole), stream(whole[1], whole[0], whole[2]), False)
        self.check(stream(*whole), stream(*whole[:2], '{"error":{"code":500}}', "[DONE]"), False)
        with self.assertRaises(BadStream):
            summary(Answer(200, "text/event-stream", b"data: {}\n"))

    def test_sampled_text_is_forgiven_only_where_it_is_sampled(self):
        one, other = body('{"model":"m","text":"x"}'), body('{"model":"m","text":"y"}')
        self.check(one, other, False)
        self.check(one, other, True, random=True)
        self.check(body('{"model":"m","text":"x"}'), body('{"model":"n","text":"x"}'), False, random=True)


if __name__ == "__main__":
    unittest.main()
