// The whole client, against a coordinator that speaks real gRPC: outputs and exit statuses.
#include "client/cli.h"

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "client/testing/fake_coordinator.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace qst {
namespace {

using ::testing::AllOf;
using ::testing::ContainsRegex;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;
using Json = nlohmann::json;

struct Result {
  int status;
  std::string out;
  std::string err;
};

class CliTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = absl::StrCat(std::getenv("TEST_TMPDIR") ? std::getenv("TEST_TMPDIR") : "/tmp", "/cli-XXXXXX");
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    folder_ = name;
    ASSERT_TRUE(coordinator_.Start());
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  Result Run(std::vector<std::string> args, const std::string& input = "") {
    std::istringstream in(input);
    std::ostringstream out, err;
    Environment env{in, out, err};
    env.getenv = [this](const std::string& name) -> std::optional<std::string> {
      if (name == "QST_COORDINATOR") return coordinator_.address();
      if (name == "HOME") return folder_;
      return std::nullopt;
    };
    const int status = RunCli(args, env);
    return {status, out.str(), err.str()};
  }

  std::string WriteFile(const std::string& name, const std::string& content) {
    const std::string path = folder_ + "/" + name;
    std::filesystem::create_directories(std::filesystem::path(path).parent_path());
    std::ofstream(path, std::ios::binary) << content;
    return path;
  }

  std::string ReadAll(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(file), {});
  }

  v1::Job AddJob(const std::string& name, const std::string& id = "") {
    v1::Job job;
    job.set_id(id);
    job.mutable_spec()->set_name(name);
    return coordinator_.AddJob(job);
  }

  std::string folder_;
  FakeCoordinator coordinator_;
};

v1::DownloadResultsResponse Piece(const std::string& path, uint64_t size, const std::string& data) {
  v1::DownloadResultsResponse piece;
  piece.set_path(path);
  piece.set_file_size(size);
  piece.set_data(data);
  return piece;
}

TEST_F(CliTest, EveryCommandHasHelpWithAnExample) {
  for (const Command& command : AllCommands()) {
    std::vector<std::string> args = absl::StrSplit(command.name, ' ');
    args.push_back("--help");
    const Result result = Run(args);
    EXPECT_EQ(result.status, 0) << command.name;
    EXPECT_THAT(result.out, AllOf(HasSubstr("Usage: qst " + command.name), HasSubstr("Example:\n  "))) << command.name;
    EXPECT_THAT(Run({"--help"}).out, HasSubstr("  " + command.name));
  }
}

TEST_F(CliTest, WrongUsageExitsWithTwoAndSuggests) {
  const std::pair<std::vector<std::string>, const char*> cases[] = {
      {{}, "qst: no command"},
      {{"sumbit"}, "qst: unknown command 'sumbit'; did you mean 'submit'?"},
      {{"model", "improt", "x"}, "did you mean 'import'?"},
      {{"model"}, "'model' needs one of import, list, show, export, rm"},
      {{"frobnicate"}, "unknown command 'frobnicate'; `qst --help`"},
      {{"jobs", "--jsn"}, "qst jobs: unknown flag --jsn; did you mean '--json'?"},
      {{"--tiemout=3", "jobs"}, "unknown flag --tiemout; did you mean '--timeout'?"},
      {{"get"}, "qst get: missing JOB; usage: qst get JOB"},
      {{"get", "a", "b"}, "qst get: unexpected argument 'b'"},
      {{"jobs", "--coordinator=nowhere"}, "--coordinator: 'nowhere' is not HOST:PORT"},
      {{"jobs", "--state=runing"}, "--state: 'runing' is none of queued"},
      {{"submit"}, "nothing to submit"},
      {{"submit", "--set", "train.lerning_rate=1"}, "did you mean 'learning_rate'?"},
      {{"submit", "--set", "name=x"}, "no model; name one"},
      {{"generate", "--prompt=x"}, "--model=NAME, or --job=JOB"},
      {{"generate", "--model=m"}, "the prompt is empty"},
      {{"generate", "--model=m", "--prompt=\xff"}, "not text in UTF-8"},
      {{"model", "import", "/etc", "--quantization=int4"}, "--quantization: 'int4' is none of nf4, fp4, none"},
      {{"jobs", "--timeout=0"}, "--timeout: more than 0"},
      {{"tokenize", "text"}, "--model=NAME"},
      {{"tokenize", "text", "--model=m", "--file=x"}, "TEXT or --file"},
      {{"model", "export", "m", "out", "--dtype=bf16"}, "give --dequantize"},
      {{"model", "export", "m", "out", "--dequantize", "--dtype=int8"}, "'int8' is none of f32, bf16, f16"},
      {{"dataset", "show", "d", "--render=1"}, "--render needs --model"},
      {{"dataset", "show", "d", "--task=sort"}, "--task: 'sort' is none of causal_lm, classification, regression"},
      {{"dataset", "show", "d", "--column=lable=x"}, "ROLE=NAME with ROLE one of text, text_pair, label"},
  };
  for (const auto& [args, message] : cases) {
    const Result result = Run(args);
    EXPECT_EQ(result.status, 2) << message;
    EXPECT_THAT(result.err, HasSubstr(message));
    EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << result.err;
    EXPECT_EQ(result.out, "");
  }
}

TEST_F(CliTest, UnreachableCoordinatorExitsWithThreeAndSaysWhere) {
  const std::string address = coordinator_.address();
  coordinator_.Stop();
  for (const std::vector<std::string>& args : std::vector<std::vector<std::string>>{
           {"jobs"}, {"workers"}, {"watch", "j-00000000"}, {"model", "list"}, {"pull", "j-00000000"}}) {
    const Result result = Run(args);
    EXPECT_EQ(result.status, 3) << args[0];
    EXPECT_THAT(result.err, AllOf(HasSubstr("no coordinator answers at " + address), HasSubstr("`qst up`")));
  }
  const Result json = Run({"jobs", "--json"});
  EXPECT_EQ(json.status, 3);
  EXPECT_EQ(Json::parse(json.err)["error"]["code"], "UNAVAILABLE");
}

TEST_F(CliTest, CoordinatorThatDoesNotAnswerIsNotCalledUnreachable) {
  FakeCoordinator::Script script;
  script.jobs_hang = true;
  coordinator_.SetScript(script);
  const Result result = Run({"jobs", "--timeout=0.3"});
  EXPECT_EQ(result.status, 1);
  EXPECT_THAT(result.err, HasSubstr("gave no answer in 300ms"));
}

TEST_F(CliTest, RefusalOfTheCoordinatorIsPrintedAndExitsWithOne) {
  FakeCoordinator::Script script;
  script.refuse = absl::InvalidArgumentError("train.epochs: must be more than 0");
  coordinator_.SetScript(script);
  WriteFile("d.jsonl", "{}");
  const Result result = Run({"submit", "--set", "model=m", "--set", "data.train=" + folder_ + "/d.jsonl"});
  EXPECT_EQ(result.status, 1);
  EXPECT_THAT(result.err, HasSubstr("qst submit: train.epochs: must be more than 0\n"));
}

TEST_F(CliTest, SubmitUploadsLocalDataOnceAndPrintsTheJobId) {
  const std::string data = std::string(700000, 'x') + "\n";
  WriteFile("job/train.jsonl", data);
  WriteFile("job/eval.jsonl", "{}\n");
  const std::string job = WriteFile("job/job.yaml",
                                    "model: m\ndata:\n  train: train.jsonl\n  eval: eval.jsonl\n"
                                    "train: {epochs: 2}\n");
  const Result result = Run({"submit", "-f", job, "--set", "train.epochs=1.5"});
  EXPECT_EQ(result.status, 0) << result.err;
  EXPECT_EQ(result.out, "j-0a000000\n");
  ASSERT_EQ(coordinator_.submits().size(), 1u);
  const v1::JobSpec spec = coordinator_.submits()[0].spec();
  EXPECT_EQ(spec.train().epochs(), 1.5);
  EXPECT_EQ(coordinator_.dataset_contents().at(spec.data().train()), data);
  EXPECT_EQ(coordinator_.dataset_contents().at(spec.data().eval()), "{}\n");
  EXPECT_EQ(coordinator_.num_uploads(), 2);
  // sha256 of "{}\n".
  EXPECT_EQ(spec.data().eval(), "ca3d163bab055381827226140568f3bef7eaac187cebd76878e0b63e9e442356");

  EXPECT_EQ(Run({"submit", "-f", job}).status, 0);
  EXPECT_EQ(coordinator_.num_uploads(), 2);
}

TEST_F(CliTest, SubmitPassesNamesOnAndRefusesMissingFiles) {
  EXPECT_EQ(Run({"submit", "--set", "model=m", "--set", "data.train=topics"}).status, 0);
  EXPECT_EQ(coordinator_.submits()[0].spec().data().train(), "topics");
  const Result missing = Run({"submit", "--set", "model=m", "--set", "data.train=no/such.jsonl"});
  EXPECT_EQ(missing.status, 1);
  EXPECT_THAT(missing.err, HasSubstr("data.train: no/such.jsonl: no such file"));
  const std::string empty = WriteFile("empty.jsonl", "");
  EXPECT_THAT(Run({"submit", "--set", "model=m", "--set", "data.train=" + empty}).err,
              HasSubstr("data.train: " + empty + ": the file is empty"));
  EXPECT_EQ(Run({"submit", "-f", folder_ + "/none.yaml"}).status, 1);
  const Result wrong = Run({"submit", "-f", WriteFile("bad.yaml", "model: m\ntrain:\n  epoch: 1\n")});
  EXPECT_EQ(wrong.status, 2);
  EXPECT_THAT(wrong.err, HasSubstr("bad.yaml:3: train.epoch: unknown key; did you mean 'epochs'?"));
}

TEST_F(CliTest, LostAnswerToSubmitMakesOneJob) {
  FakeCoordinator::Script script;
  script.lost_submit_answers = 2;
  coordinator_.SetScript(script);
  const Result result = Run({"submit", "--set", "model=m", "--set", "data.train=d"});
  EXPECT_EQ(result.status, 0) << result.err;
  EXPECT_EQ(coordinator_.submits().size(), 3u);
  EXPECT_EQ(coordinator_.submits()[0].request_id(), coordinator_.submits()[2].request_id());
  EXPECT_EQ(coordinator_.num_jobs(), 1u);
}

TEST_F(CliTest, SubmitWatchExitsByTheJobsEnd) {
  const std::tuple<v1::JobState, int, const char*> ends[] = {
      {v1::JOB_STATE_SUCCEEDED, 0, ""},
      {v1::JOB_STATE_FAILED, 1, "failed: the worker w1 was lost"},
      {v1::JOB_STATE_CANCELLED, 1, "cancelled"},
  };
  for (const auto& [state, status, message] : ends) {
    FakeCoordinator::Script script;
    script.on_submit = [this, end = state](const v1::Job& job) {
      coordinator_.AddState(job.id(), v1::JOB_STATE_QUEUED, "waits for 2 workers");
      coordinator_.AddState(job.id(), v1::JOB_STATE_RUNNING);
      for (uint64_t step = 1; step <= 100; ++step) coordinator_.AddProgress(job.id(), step, 100);
      v1::JobEvent event;
      event.set_metrics_json(R"({"step": 100, "eval": {"accuracy": 0.9142, "loss": 0.25}})");
      coordinator_.AddEvent(job.id(), event);
      coordinator_.AddState(job.id(), end, end == v1::JOB_STATE_FAILED ? "the worker w1 was lost" : "");
    };
    coordinator_.SetScript(script);
    const Result result = Run({"submit", "--set", "model=m", "--set", "data.train=d", "--watch"});
    EXPECT_EQ(result.status, status);
    EXPECT_THAT(result.err, HasSubstr(message));
    EXPECT_THAT(result.out, AllOf(HasSubstr("QUEUED  waits for 2 workers\n"), HasSubstr("step 50/100 (50%)"),
                                  HasSubstr("evaluation at step 100: accuracy 0.9142, loss 0.2500\n")));
    // No terminal: a line for each tenth, no control characters.
    EXPECT_LE(std::count(result.out.begin(), result.out.end(), '\n'), 18);
    EXPECT_THAT(result.out, Not(HasSubstr("\x1b")));
  }
}

TEST_F(CliTest, WatchGoesOnAcrossARestartOfTheCoordinator) {
  const std::string id = AddJob("a").id();
  coordinator_.AddState(id, v1::JOB_STATE_RUNNING);
  coordinator_.AddProgress(id, 1, 3);
  Result result;
  std::thread watch([&] { result = Run({"watch", id, "--json"}); });
  coordinator_.AwaitSent(id, 2);
  const std::string address = coordinator_.address();
  coordinator_.Stop();
  coordinator_.AddProgress(id, 2, 3);
  coordinator_.AddState(id, v1::JOB_STATE_SUCCEEDED);
  ASSERT_TRUE(coordinator_.Start(address));
  watch.join();
  EXPECT_EQ(result.status, 0) << result.err;
  std::vector<uint64_t> sequences;
  std::vector<std::string> lines = absl::StrSplit(result.out, '\n', absl::SkipEmpty());
  for (size_t i = 0; i + 1 < lines.size(); ++i) sequences.push_back(Json::parse(lines[i])["event"]["sequence"]);
  EXPECT_THAT(sequences, ElementsAre(1, 2, 3, 4));
  EXPECT_EQ(Json::parse(lines.back())["job"]["state"], "SUCCEEDED");
}

TEST_F(CliTest, WatchSaysOnceThatTheCoordinatorIsAwayAndGivesUp) {
  const std::string id = AddJob("a").id();
  coordinator_.AddState(id, v1::JOB_STATE_RUNNING);
  Result result;
  std::thread watch([&] { result = Run({"watch", id, "--reconnect-for=1s"}); });
  coordinator_.AwaitSent(id, 1);
  coordinator_.Stop();
  watch.join();
  EXPECT_EQ(result.status, 3);
  const size_t notice = result.out.find("lost the coordinator at");
  ASSERT_NE(notice, std::string::npos);
  EXPECT_EQ(result.out.find("lost the coordinator at", notice + 1), std::string::npos);
}

TEST_F(CliTest, JobsAreNamedByIdBeginningOrName) {
  AddJob("topics", "j-aa000001");
  AddJob("topics", "j-ab000002");
  AddJob("alpaca", "j-ab000003");
  const auto id_of = [&](const std::string& text) {
    const Result result = Run({"get", text, "--json"});
    return result.status == 0 ? Json::parse(result.out)["job"]["id"].get<std::string>() : result.err;
  };
  EXPECT_EQ(id_of("j-aa000001"), "j-aa000001");
  EXPECT_EQ(id_of("j-aa"), "j-aa000001");
  EXPECT_EQ(id_of("ab000003"), "j-ab000003");
  EXPECT_EQ(id_of("topics"), "j-ab000002");
  EXPECT_THAT(id_of("j-ab"), HasSubstr("'j-ab' is the beginning of several jobs: j-ab000003, j-ab000002"));
  EXPECT_THAT(id_of("topic"), HasSubstr("no job has the id or name 'topic'; did you mean 'topics'?"));
  EXPECT_EQ(Run({"get", "topic"}).status, 1);
  EXPECT_THAT(id_of("j-99999999"), HasSubstr("no job j-99999999"));
}

TEST_F(CliTest, GetShowsTheSpecAsAJobFile) {
  v1::Job job;
  job.mutable_spec()->set_name("topics");
  job.mutable_spec()->mutable_side()->set_preset(v1::SIDE_PRESET_PAPER);
  job.set_status_message("two\nlines");
  const std::string id = coordinator_.AddJob(job).id();
  EXPECT_EQ(Run({"get", id, "--spec"}).out, "name: topics\nside:\n  preset: paper\n");
  EXPECT_THAT(Run({"get", id}).out, AllOf(HasSubstr("two lines"), HasSubstr("  side:\n    preset: paper\n")));
  EXPECT_EQ(Json::parse(Run({"get", id, "--json"}).out)["job"]["spec"]["side"]["preset"], "paper");
}

TEST_F(CliTest, JobsFiltersByState) {
  AddJob("one");
  const std::string id = AddJob("two").id();
  coordinator_.AddState(id, v1::JOB_STATE_SUCCEEDED);
  EXPECT_THAT(Run({"jobs"}).out, AllOf(StartsWith("JOB "), HasSubstr("one"), HasSubstr("two")));
  EXPECT_THAT(Run({"jobs", "--state=succeeded,failed"}).out, AllOf(Not(HasSubstr("one")), HasSubstr("two")));
  EXPECT_THAT(Run({"jobs", "--state=running"}).out, HasSubstr("no jobs"));
}

TEST_F(CliTest, LogsOfARunningJobEndWithoutItsEnd) {
  const std::string id = AddJob("a").id();
  coordinator_.AddState(id, v1::JOB_STATE_RUNNING, "on w0");
  v1::JobEvent event;
  event.set_message("12 texts were cut to 512 tokens");
  coordinator_.AddEvent(id, event);
  coordinator_.AddProgress(id, 1, 10);
  const Result result = Run({"logs", id});
  EXPECT_EQ(result.status, 0);
  EXPECT_THAT(result.out, AllOf(HasSubstr("RUNNING  on w0\n"), HasSubstr("12 texts were cut")));
  EXPECT_EQ(std::count(result.out.begin(), result.out.end(), '\n'), 2);
}

TEST_F(CliTest, PullWritesWholeFilesBelowTheFolder) {
  const std::string id = AddJob("a").id();
  FakeCoordinator::Script script;
  script.results = {Piece("metrics.jsonl", 6, "abc"), Piece("metrics.jsonl", 6, "def"), Piece("sub/empty", 0, "")};
  coordinator_.SetScript(script);
  const std::string out = folder_ + "/result/deep";
  EXPECT_EQ(Run({"pull", "a", "-o", out}).status, 0);
  EXPECT_EQ(ReadAll(out + "/metrics.jsonl"), "abcdef");
  EXPECT_TRUE(std::filesystem::exists(out + "/sub/empty"));
  EXPECT_EQ(Json::parse(Run({"pull", id, "-o", out, "--json"}).out)["files"][0]["size_bytes"], 6);
}

TEST_F(CliTest, PullRefusesUnsafePathsAndBrokenStreams) {
  AddJob("a");
  const std::pair<std::vector<v1::DownloadResultsResponse>, const char*> cases[] = {
      {{Piece("../evil", 1, "x")}, "unsafe path '../evil'"},
      {{Piece("/tmp/evil", 1, "x")}, "unsafe path"},
      {{Piece("a/../../evil", 1, "x")}, "unsafe path"},
      {{Piece("", 1, "x")}, "unsafe path"},
      {{Piece("a\nb", 1, "x")}, "unsafe path"},
      {{Piece("file", 3, "x")}, "file: 1 of 3 bytes arrived"},
      {{Piece("file", 1, "xy")}, "file: more than its 1 bytes arrived"},
      {{}, "has no results"},
  };
  for (const auto& [results, message] : cases) {
    FakeCoordinator::Script script;
    script.results = results;
    coordinator_.SetScript(script);
    const Result result = Run({"pull", "a", "-o", folder_ + "/out"});
    EXPECT_EQ(result.status, 1);
    EXPECT_THAT(result.err, HasSubstr(message));
    EXPECT_TRUE(!std::filesystem::exists(folder_ + "/out") || std::filesystem::is_empty(folder_ + "/out"));
    EXPECT_FALSE(std::filesystem::exists(folder_ + "/evil"));
  }
}

TEST_F(CliTest, ModelImportFollowsToItsEnd) {
  v1::Model importing, ready, failed;
  importing.set_name("tiny");
  importing.set_state(v1::MODEL_STATE_IMPORTING);
  importing.set_status_message("waits for a worker");
  v1::Model half = importing;
  half.set_bytes_done(512);
  half.set_bytes_total(1024);
  ready = importing;
  ready.set_state(v1::MODEL_STATE_READY);
  ready.set_num_parameters(134515008);
  failed = importing;
  failed.set_state(v1::MODEL_STATE_FAILED);
  failed.set_status_message("truncated at byte 12");
  const std::string path = WriteFile("My Model.gguf", "x");
  FakeCoordinator::Script script;
  script.model_changes = {importing, half, half, ready};
  coordinator_.SetScript(script);
  const Result result = Run({"model", "import", path, "--quantization=fp4", "--block-size=128", "--no-double-quant"});
  EXPECT_EQ(result.status, 0) << result.err;
  EXPECT_THAT(result.out, AllOf(StartsWith("importing: waits for a worker\nimporting: 50%  512 B / 1.0 KiB\nname "),
                                HasSubstr("134.5 M")));
  const v1::ImportModelRequest request = coordinator_.imports().at(0);
  EXPECT_EQ(request.name(), "My-Model");
  EXPECT_EQ(request.source_path(), path);
  EXPECT_EQ(request.quantization().type(), v1::QUANTIZATION_TYPE_FP4);
  EXPECT_EQ(request.quantization().block_size(), 128u);
  EXPECT_FALSE(request.quantization().double_quant());
  EXPECT_TRUE(request.quantization().has_double_quant());

  script.model_changes = {importing, failed};
  coordinator_.SetScript(script);
  const Result failure = Run({"model", "import", path, "--name=tiny"});
  EXPECT_EQ(failure.status, 1);
  EXPECT_THAT(failure.err, HasSubstr("import of tiny failed: truncated at byte 12"));
  // What is not asked for is left open.
  EXPECT_EQ(coordinator_.imports().at(1).quantization().type(), v1::QUANTIZATION_TYPE_UNSPECIFIED);
  EXPECT_EQ(coordinator_.imports().at(1).quantization().block_size(), 0u);
  EXPECT_FALSE(coordinator_.imports().at(1).quantization().has_double_quant());

  const Result missing = Run({"model", "import", folder_ + "/none.gguf"});
  EXPECT_EQ(missing.status, 1);
  EXPECT_THAT(missing.err, HasSubstr("none.gguf: no such file or folder"));
  EXPECT_EQ(coordinator_.imports().size(), 2u);

  EXPECT_EQ(Run({"model", "show", "tiny"}).status, 0);
  EXPECT_THAT(Run({"model", "list"}).out, HasSubstr("tiny"));
  EXPECT_EQ(Run({"model", "rm", "tiny"}).status, 0);
  EXPECT_EQ(Run({"model", "rm", "tiny"}).status, 1);
}

TEST_F(CliTest, ModelShowListsTheLayersThatLostMostFirst) {
  v1::Model model;
  model.set_name("tiny");
  model.set_state(v1::MODEL_STATE_READY);
  model.set_quantization_error(0.0912);
  for (int i = 0; i < 7; ++i) {
    v1::LayerSummary* layer = model.add_layers();
    layer->set_num_parameters(1000000);
    layer->set_stored_bytes(512);
    layer->set_quantization_error(0.08 + 0.001 * (i * 3 % 7));  // layers 2, 4, 6, 1, 3, 5, 0
    layer->set_worst_tensor("mlp.up_proj.weight");
    layer->set_worst_error(0.125);
  }
  FakeCoordinator::Script script;
  script.model_changes = {model};
  coordinator_.SetScript(script);
  ASSERT_EQ(Run({"model", "import", WriteFile("m.gguf", "x"), "--name=tiny"}).status, 0);
  const std::string top = Run({"model", "show", "tiny"}).out;
  EXPECT_THAT(top, HasSubstr("9.12 % (relative RMS)"));
  EXPECT_THAT(top, HasSubstr("layers in all"));
  EXPECT_THAT(top, HasSubstr("2 more layers: --all"));
  EXPECT_THAT(top, HasSubstr("mlp.up_proj.weight"));
  EXPECT_THAT(top, HasSubstr("12.50 %"));
  // By error: 2 (8.6 %), 4 (8.5 %), 6 (8.4 %), 1 (8.3 %), 3 (8.2 %).
  EXPECT_LT(top.find("8.60 %"), top.find("8.50 %"));
  EXPECT_EQ(top.find("8.00 %"), std::string::npos);
  const std::string all = Run({"model", "show", "tiny", "--all"}).out;
  EXPECT_LT(all.find("8.10 %"), all.find("8.00 %"));
  EXPECT_EQ(all.find("more layers"), std::string::npos);
}

TEST_F(CliTest, DatasetAddSaysWhatIsStored) {
  const std::string path = WriteFile("d.jsonl", "{}\n");
  EXPECT_THAT(Run({"dataset", "add", path, "--name=d"}).out, StartsWith("stored d ca3d163b"));
  EXPECT_THAT(Run({"dataset", "add", path}).out, StartsWith("already stored: d ca3d163b"));
  EXPECT_THAT(Run({"dataset", "list"}).out, HasSubstr("d.jsonl"));
  const Json json = Json::parse(Run({"dataset", "list", "--json"}).out);
  EXPECT_EQ(json["datasets"][0]["size_bytes"], 3);
  EXPECT_EQ(Run({"dataset", "rm", "ca3d163bab055381"}).status, 0);
  EXPECT_EQ(Run({"dataset", "rm", "d"}).status, 1);
  EXPECT_THAT(Run({"dataset", "add", folder_}).err, HasSubstr("not a file"));
  EXPECT_EQ(Run({"dataset", "add", folder_ + "/none"}).status, 1);
}

TEST_F(CliTest, GenerateStreamsTextAndReadsThePromptFromInput) {
  v1::GenerateResponse first, last;
  first.set_text("Hello ");
  first.add_token_ids(5);
  last.set_text("w\xc3\xb6rld");
  last.add_token_ids(6);
  last.add_token_ids(7);
  last.set_finish_reason("stop");
  FakeCoordinator::Script script;
  script.generated = {first, last};
  coordinator_.SetScript(script);
  AddJob("alpaca", "j-0b000001");
  const Result result = Run({"generate", "--job=alpaca", "--max-new-tokens=7", "--template=alpaca", "--stages=2",
                             "--workers=3", "--device=cuda", "--temperature=0.5", "--seed=9", "--show-ids"},
                            "a prompt\nof two lines\n");
  EXPECT_EQ(result.status, 0) << result.err;
  EXPECT_EQ(result.out, "Hello w\xc3\xb6rld\ntoken ids: 5 6 7\n");
  const v1::GenerateRequest request = coordinator_.generates().at(0);
  EXPECT_EQ(request.prompt(), "a prompt\nof two lines");
  EXPECT_EQ(request.job_id(), "j-0b000001");
  EXPECT_EQ(request.max_new_tokens(), 7u);
  EXPECT_EQ(request.template_(), "alpaca");
  EXPECT_EQ(request.resources().stages(), 2u);
  EXPECT_EQ(request.resources().workers(), 3u);
  EXPECT_EQ(request.resources().device(), v1::DEVICE_KIND_CUDA);
  EXPECT_EQ(request.temperature(), 0.5);
  EXPECT_EQ(request.seed(), 9u);
  const std::string json = Run({"generate", "--model=m", "--prompt=x", "--json"}).out;
  EXPECT_EQ(Json::parse(json.substr(json.find('\n') + 1))["finish_reason"], "stop");

  script.refuse = absl::UnavailableError("no worker is free");
  coordinator_.SetScript(script);
  const Result busy = Run({"generate", "--model=m", "--prompt=x"});
  EXPECT_EQ(busy.status, 1);
  EXPECT_THAT(busy.err, HasSubstr("no worker is free"));
}

TEST_F(CliTest, WorkersAreListed) {
  coordinator_.SetWorkers([] {
    v1::Worker worker;
    worker.set_id("w0");
    worker.set_state(v1::WORKER_STATE_BUSY);
    worker.set_device("cuda:1");
    worker.set_device_name("NVIDIA H100 80GB HBM3 (cuda:1, sm_90)");
    worker.set_memory_bytes(uint64_t{8} << 30);
    worker.set_device_memory_bytes(uint64_t{72} << 30);
    worker.set_resident_bytes(3 << 20);
    worker.add_parts("stage 0");
    worker.add_parts("side network");
    return std::vector<v1::Worker>{worker};
  });
  EXPECT_THAT(Run({"workers"}).out,
              AllOf(HasSubstr("w0"), HasSubstr("BUSY"), HasSubstr("3.0 MiB"), HasSubstr("stage 0, side network"),
                    HasSubstr("cuda:1  72.0 GiB  NVIDIA H100 80GB HBM3 (cuda:1, sm_90)")));
  EXPECT_EQ(Json::parse(Run({"--json", "workers"}).out)["workers"][0]["state"], "BUSY");
}

TEST_F(CliTest, GetShowsWhereAJobWasPlaced) {
  v1::Job job;
  job.set_id("j-0b000002");
  v1::Placement* placement = job.mutable_placement();
  placement->set_device(v1::DEVICE_KIND_CUDA);
  placement->set_data_plane(v1::DATA_PLANE_NCCL);
  v1::PlacedStage* stage = placement->add_stages();
  stage->set_worker_id("w0");
  stage->set_num_layers(32);
  stage->set_memory_bytes(uint64_t{4} << 30);
  placement->set_side_worker_id("w1");
  coordinator_.AddJob(job);
  const std::string out = Run({"get", "j-0b000002"}).out;
  EXPECT_THAT(out, ContainsRegex("device +cuda\n"));
  EXPECT_THAT(out, ContainsRegex("data plane +nccl\n"));
  EXPECT_THAT(out, ContainsRegex("stage 0 +w0  layers 0 to 31  needs 4.0 GiB\n"));
  EXPECT_THAT(out, ContainsRegex("side network +w1\n"));
}

TEST_F(CliTest, UpRefusesDevicesThatItDoesNotKnow) {
  Result result = Run({"up", "--device=tpu"});
  EXPECT_EQ(result.status, 2);
  EXPECT_THAT(result.err, HasSubstr("--device: 'tpu' is none of auto, cpu, cuda"));
  result = Run({"up", "--gpus=2"});
  EXPECT_EQ(result.status, 2);
  EXPECT_THAT(result.err, HasSubstr("--gpus: goes with --device=cuda"));
  EXPECT_EQ(Run({"up", "--device=cuda", "--gpus=0"}).status, 2);
}

TEST_F(CliTest, DownWithoutAClusterHasNothingToDo) {
  const Result result = Run({"down"});
  EXPECT_EQ(result.status, 0);
  EXPECT_THAT(result.out, HasSubstr("no cluster is up"));
}

TEST_F(CliTest, TokenizeShowsTokensOrIdsOfArgumentFileOrInput) {
  FakeCoordinator::Script script;
  for (const auto& [id, text] :
       std::vector<std::pair<int, std::string>>{{1, "<s>"}, {40, "\xc4\xa0hi"}, {7, "\x1b["}}) {
    v1::TokenizeResponse::Token& token = *script.tokens.add_tokens();
    token.set_id(id);
    token.set_token(text);
  }
  coordinator_.SetScript(script);
  Result result = Run({"tokenize", "--model=m", "hi"});
  EXPECT_EQ(result.status, 0) << result.err;
  EXPECT_THAT(result.out, AllOf(HasSubstr("40  \xc4\xa0hi\n"), HasSubstr("7  \\x1b["), HasSubstr("3 tokens")));
  result = Run({"tokenize", "--model=m", "--ids", "--no-special"}, "from input\n");
  EXPECT_EQ(result.out, "1 40 7\n");
  result = Run({"tokenize", "-m", "m", "-f", WriteFile("text.txt", "in a file"), "--json"});
  EXPECT_EQ(Json::parse(result.out)["tokens"][1]["id"], 40);
  ASSERT_EQ(coordinator_.tokenizes().size(), 3u);
  EXPECT_EQ(coordinator_.tokenizes()[0].text(), "hi");
  EXPECT_EQ(coordinator_.tokenizes()[1].text(), "from input\n") << "as it is";
  EXPECT_TRUE(coordinator_.tokenizes()[1].no_special());
  EXPECT_EQ(coordinator_.tokenizes()[2].text(), "in a file");
  result = Run({"tokenize", "--model=m"}, std::string(200'000, 'x'));
  EXPECT_EQ(result.status, 1);
  EXPECT_THAT(result.err, HasSubstr("standard input: more than 131072 bytes"));
  EXPECT_EQ(Run({"tokenize", "-m", "m", "-f", folder_ + "/none"}).status, 1);
}

TEST_F(CliTest, DatasetAddPrintsWhatIsInTheFile) {
  FakeCoordinator::Script script;
  script.description.set_kind("classification");
  script.description.set_num_examples(2);
  coordinator_.SetScript(script);
  const std::string path = WriteFile("a.jsonl", "{}\n");
  Result result = Run({"dataset", "add", path, "--model=m", "--column=label=score"});
  EXPECT_EQ(result.status, 0) << result.err;
  EXPECT_THAT(result.out, AllOf(StartsWith("stored "), ContainsRegex("rows +2\n")));
  ASSERT_EQ(coordinator_.describes().size(), 1u);
  EXPECT_EQ(coordinator_.describes()[0].model(), "m");
  EXPECT_EQ(coordinator_.describes()[0].data().columns().label(), "score");
  result = Run({"dataset", "add", path, "--no-summary"});
  EXPECT_EQ(coordinator_.describes().size(), 1u);
  script.describe_error = absl::ResourceExhaustedError("no worker is connected");
  coordinator_.SetScript(script);
  result = Run({"dataset", "add", path});
  EXPECT_EQ(result.status, 0) << "the upload is what was asked for";
  EXPECT_THAT(result.out, HasSubstr("no summary: no worker is connected"));
  script.describe_error = absl::InvalidArgumentError("a.jsonl line 6: not JSON");
  coordinator_.SetScript(script);
  result = Run({"dataset", "add", path});
  EXPECT_EQ(result.status, 1);
  EXPECT_THAT(result.err, AllOf(HasSubstr("a.jsonl line 6"), HasSubstr("stored all the same")));
}

TEST_F(CliTest, DatasetShowSendsWhatFlagsAndJobFileSayAndRendersExamples) {
  FakeCoordinator::Script script;
  script.description.set_kind("chat");
  script.description.mutable_dataset()->set_name("d");
  auto& example = *script.description.add_examples();
  example.set_line(3);
  example.add_segments()->set_text("<|im_start|>assistant\n");
  auto& answer = *example.add_segments();
  answer.set_text("yes<|im_end|>");
  answer.set_bears_loss(true);
  answer.add_token_ids(1);
  answer.add_token_ids(2);
  coordinator_.SetScript(script);
  const std::string job =
      WriteFile("job.yaml", "name: x\nmodel: m\ndata: {train: d, template: llama2, max_length: 64}\n");
  Result result = Run({"dataset", "show", "d", "-f", job, "--template=vicuna", "--render=1", "--first=2"});
  EXPECT_EQ(result.status, 0) << result.err;
  EXPECT_THAT(result.out,
              HasSubstr("--- line 3: 2 tokens, 2 bear loss ---\n<|im_start|>assistant\n[[yes<|im_end|>]]\n"));
  ASSERT_EQ(coordinator_.describes().size(), 1u);
  const v1::DescribeDatasetRequest request = coordinator_.describes()[0];
  EXPECT_EQ(request.model(), "m");
  EXPECT_EQ(request.data().template_(), "vicuna");
  EXPECT_EQ(request.data().max_length(), 64u);
  EXPECT_EQ(request.render(), 1u);
  EXPECT_EQ(request.first_example(), 2u);
  result = Run({"dataset", "show", "d", "--json"});
  EXPECT_EQ(Json::parse(result.out)["kind"], "chat");
}

TEST_F(CliTest, ModelExportShowsProgressAndWhereTheModelIs) {
  FakeCoordinator::Script script;
  script.export_progress.resize(3);
  script.export_progress[0].set_bytes_total(100);
  script.export_progress[1].set_bytes_total(100);
  script.export_progress[1].set_bytes_done(55);
  script.export_progress[2].set_path("/out/m");
  coordinator_.SetScript(script);
  const Result result = Run({"model", "export", "m", "/out/x/../m/", "--dequantize", "--dtype=bf16"});
  EXPECT_EQ(result.status, 0) << result.err;
  EXPECT_EQ(result.out, "exporting: 0%  0 B / 100 B\nexporting: 50%  55 B / 100 B\nexported m to /out/m\n");
  ASSERT_EQ(coordinator_.exports().size(), 1u);
  EXPECT_EQ(coordinator_.exports()[0].destination_path(), "/out/m");
  EXPECT_TRUE(coordinator_.exports()[0].dequantize());
  EXPECT_EQ(coordinator_.exports()[0].dtype(), "bf16");
}

}  // namespace
}  // namespace qst
