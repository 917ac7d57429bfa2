"""Every field of a config, its default and its meaning. An experiment states only what differs from these.

The defaults are Ho et al. 2020 (arXiv 2006.11239), appendix B, where the paper says; CIFAR-10 is their first set.
"""

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
    """The defaults; not an experiment of their own."""
    config = ConfigDict()
    config.seed = 0  # 0..2**32-1, of everything random: initial parameters, order of the data, noise

    config.data = data = ConfigDict()
    data.name = "cifar10"  # digits, image_folder for a folder of your own images, or the name of any TFDS image set
    data.split = "train"  # or a slice, train[:90%], train[:1000]; image folders with subfolders train and test have these
    data.data_dir = ""  # the image folder, or where TFDS sets are; "" for TFDS_DATA_DIR or ~/tensorflow_datasets
    data.image_size = 32  # height and width; other sizes are center-cropped to a square and resized
    data.channels = 3  # 1 gray, 3 RGB; other images are converted
    data.num_classes = 10  # labels 0..num_classes-1; 0 for a set without
    data.random_flip = True  # mirror left to right with probability 1/2
    data.background = "white"  # of an image folder: what shows through transparent pixels, the name of a color or #rrggbb
    data.value_range = ()  # levels that are black and white in gray files of more than 8 bits, (0, 4095); () to find one range
    data.on_decode_error = "error"  # error | skip; of an image folder: what to do about files that cannot be read
    data.in_memory = "auto"  # always | never | auto: decode the whole set once if it takes at most 2 GiB
    data.num_threads = 4  # that read and decode
    data.prefetch = 8  # batches ready ahead of the device

    config.model = model = ConfigDict()
    model.ch = 128  # base width
    model.ch_mult = (1, 2, 2, 2)  # width of each level, in ch; the image is halved between levels
    model.num_res_blocks = 2  # per level
    model.attn_resolutions = (16,)  # heights (in pixels) at which self-attention follows every block; () for none
    model.mid_attention = True  # self-attention in the middle, at the lowest resolution, as in Ho's network; False for none
    model.dropout = 0.1
    model.num_heads = 1  # of each attention
    model.scale_shift = False  # time scales and shifts each block's norm (Improved DDPM), in place of being added
    model.class_conditional = False  # learn p(x | class); needs data.num_classes
    model.label_dropout = 0.0  # fraction of examples trained without their class, for guidance; 0 for none
    model.dtype = "float32"  # float32 | bfloat16: of convolutions and matmuls; parameters stay float32
    model.remat = False  # recompute activations in the backward pass: less memory, a third more time

    config.diffusion = diffusion = ConfigDict()
    diffusion.schedule = "linear"  # linear | cosine | sigmoid
    diffusion.num_timesteps = 1000  # T
    # Rescale the schedule to end in pure noise: needs prediction v or x_start, and sampling.spacing trailing.
    # A weighting that is 0 at SNR 0 (snr, min_snr_gamma, p2) becomes 1 at that last step, as in min_snr_gamma's own program.
    diffusion.zero_terminal_snr = False
    diffusion.prediction = "eps"  # eps | x_start | v: what the network predicts
    diffusion.variance = "fixed_large"  # fixed_small | fixed_large | learned_range: of each reverse step
    diffusion.loss = "simple"  # simple | hybrid | hybrid_mean | vlb | vlb_mean; a learned variance needs one of the latter four
    diffusion.weighting = "simple"  # of the squared error: simple | snr | truncated_snr | min_snr_gamma | p2 | edm
    diffusion.min_snr_gamma = 5.0
    diffusion.p2_gamma = 1.0
    diffusion.p2_k = 1.0
    diffusion.edm_sigma_data = 0.5
    diffusion.timestep_sampler = "uniform"  # uniform | low_discrepancy | second_moment: which t are trained on
    diffusion.clip_denoised = True  # clip each guess of x_start to [-1, 1] in sampling

    config.optimizer = optimizer = ConfigDict()
    optimizer.learning_rate = 2e-4
    optimizer.warmup_steps = 5000  # step s trains at (s + 1) / warmup_steps of the rate; Ho's program at s / warmup_steps
    optimizer.clip_norm = 1.0  # of the gradient of the whole batch; 0 for none
    optimizer.accumulation_steps = 1  # micro-batches per step; train.batch_size is all of them together

    config.ema = ema = ConfigDict()
    ema.decay = 0.9999  # min(decay, (1 + step) / (10 + step))
    ema.extra_decays = ()  # of further such averages, each kept beside the first at the cost of its memory
    ema.power_sigma_rel = ()  # lengths (σ_rel) of power-function averages: (0.05, 0.1) and kept checkpoints make any

    config.train = train = ConfigDict()
    train.num_steps = 800_000
    train.batch_size = 128  # over all devices and micro-batches
    train.log_every = 100
    train.checkpoint_every = 5000
    train.max_to_keep = 3  # checkpoints kept for resuming
    train.keep_period = 100_000  # of the checkpoints, those of every so many steps are kept for good; 0 for none
    train.sample_every = 10_000  # a picture of samples, at most 100; 0 for none, also at the end
    train.sample_num_steps = 20  # of its solver, where config.sampling takes more: dpmpp_2m, or ddim; 0 for config.sampling
    train.eval_every = 0  # config.evaluation's scores, into metrics.jsonl and TensorBoard; 0 for none
    train.eval_num_samples = 1000  # generated for it, by config.sampling's sampler
    train.tensorboard = True

    config.sampling = sampling = ConfigDict()
    sampling.sampler = "ddim"  # ancestral | ddim | dpmpp_2m | dpmpp_2m_sde | unipc | heun | ode
    sampling.num_steps = 50  # 1..T; network evaluations per image, but for heun (2N - 1) and ode (about 4N)
    sampling.eta = 0.0  # DDIM's noise: 0 none, 1 as much as ancestral
    sampling.spacing = "leading"  # leading | linspace | trailing | quadratic | karras | logsnr: which steps of the T
    sampling.order = 2  # of unipc: 1, 2 or 3
    sampling.churn = 0.0  # heun's noise, all steps together (EDM's S_churn); 0 is deterministic
    sampling.churn_interval = (0.0, 1e6)  # lowest and highest sigma at which heun puts noise back (S_min, S_max)
    sampling.churn_noise = 1.0  # factor on that noise (S_noise)
    sampling.guidance_scale = 1.0  # toward the class, of a model with label_dropout: 1 none, 0 without any class
    sampling.guidance_interval = (0.0, 1.0)  # first and last part of the T steps that is guided, 0 the image and 1 pure noise
    sampling.guidance_rescale = 0.0  # 0..1, against images that a large scale makes too bright
    sampling.num_images = 64
    sampling.batch_size = 64  # over all devices
    sampling.seed = 0  # 0..2**32-1; image i of a seed is the same picture at any batch size
    sampling.params = (
        "ema"  # ema | raw | decay_0.999 of ema.extra_decays | power_0.07: any length, made of those of ema.power_sigma_rel
    )
    # The class to generate with a class-conditional model: its label 0..num_classes-1, or its name; -1 for each in turn.
    sampling.label = config_dict.FieldReference(-1, field_type=object)
    sampling.checkpoint_step = -1  # -1 for the latest
    sampling.num_intermediates = (
        0  # stages from noise to image to keep of the first 64 images, in images.npz and as strips; 0 for none
    )
    sampling.format = "npz"  # npz | png | both | guided_diffusion (an .npz with arr_0 and arr_1, as its evaluator reads)

    config.evaluation = evaluation = ConfigDict()
    # frechet | kid | inception_score | precision_recall | bits_per_dim | ode_bits_per_dim
    evaluation.metrics = ("frechet", "kid", "precision_recall", "bits_per_dim")
    evaluation.features = "inception"  # inception | pixels | pixels_16 (averaged to 16x16) | module:function of yours
    evaluation.inception_path = ""  # of inception: its .pth file; "" to find it where PyTorch tools keep it, or download it
    evaluation.num_images = 50_000  # generated by config.sampling's sampler
    evaluation.class_proportions = "reference"  # reference | uniform: of the classes that a class-conditional model generates
    evaluation.batch_size = 64  # of features and of the bound, over all devices
    evaluation.reference = ""  # file of --mode=compute_stats, or of another tool: statistics or images; "" to measure the split
    evaluation.split = ""  # of data.name: the real images that generated ones are compared with; "" for data.split
    evaluation.max_features = 10_000  # how many of each set kid and precision_recall use, chosen by a seed; 0 for all
    # Split of data.name that was not trained on: for bits/dim, and for what real images score. "auto" takes test, validation
    # or val, whichever there is; "" for none.
    evaluation.heldout_split = "auto"
    evaluation.num_heldout_images = 0  # of it, from the first; 0 for all
    evaluation.vlb_num_timesteps = 0  # for each image, an even number drawn at random without bias; 0 for all T, exactly
    evaluation.vlb_decoder = "exact"  # exact | tanh: of L_0; tanh approximates it as improved- and guided-diffusion do
    evaluation.hutchinson_samples = (
        1  # random directions of ode_bits_per_dim for each image; 0 for the exact trace, of small images
    )
    evaluation.ode_tolerance = 1e-5  # of its solver, relative and absolute
    evaluation.checkpoint_steps = (-1,)  # -1 for the latest; all are measured
    evaluation.params = ()  # all are measured: names as of sampling.params; () for that one
    evaluation.samplers = ()  # measured one after another; () for sampling.sampler
    evaluation.num_steps = ()  # of each sampler; () for sampling.num_steps

    # Of the modes inpaint, image_to_image and interpolate, which begin with images.
    config.edit = edit = ConfigDict()
    edit.images = ()  # files; () for num_images of the data set, from first_image on
    edit.split = ""  # of the data set, such as test; "" for data.split
    edit.start_index = 0
    edit.num_images = 4
    edit.samples_per_image = 4  # inpaint, image_to_image: samples for each image
    edit.mask = "center"  # inpaint: what is filled in: a file, white there, or center | left | right | top | bottom
    edit.jump_length = 0  # inpaint: steps back up at a time; 0 for sampling.num_steps / 25, the paper's 10 of 250
    edit.resampling = 10  # inpaint: how often each part of the chain is sampled; 1 is fast, but the parts fit badly
    edit.strength = 0.5  # image_to_image: 0..1, part of the chain's steps taken; 1 starts from pure noise: nothing is kept
    edit.num_frames = 9  # interpolate: pictures from one image to the next, both ends included
    edit.inversion_iters = 3  # interpolate: network evaluations per step of the inversion; more reproduce the images better

    config.visualize = visualize = ConfigDict()
    visualize.num_images = 4  # rows: real images taken to noise, and chains of config.sampling back
    visualize.num_stages = 11  # columns, from image to noise and from noise to image
    visualize.start_index = 0  # of the data set: where the real images shown begin
    return config
