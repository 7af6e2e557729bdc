r"""The complete workflow on a laptop: `python -m lit_rft.demo`, or `make demo`.

It makes expert episodes of household tasks, lets the untrained model play held-out games, fine-tunes it, and plays the
same games again. The same with the command line:

    lit-rft predict -c glider/alfworld/sft.yaml -c glider/alfworld/flat_sft.yaml -c glider/alfworld/demo.yaml
    lit-rft fit     -c glider/alfworld/sft.yaml -c glider/alfworld/flat_sft.yaml -c glider/alfworld/demo.yaml
    lit-rft predict -c glider/alfworld/sft.yaml -c glider/alfworld/flat_sft.yaml -c glider/alfworld/demo.yaml \
        --ckpt_path last --trainer.callbacks+ lit_rft.callbacks.EpisodeFiles \
        --trainer.callbacks.init_args.path runs/demo/episodes/after.jsonl
"""

from lit_rft.demo.run import main

__all__ = ["main"]
